"""The command line: ``vmstackctl`` or ``python3 -m vmstackctl``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    try:
        # Imported here, so that Ctrl-C is answered well from the beginning.
        from vmstackctl import terminal  # noqa: PLC0415

        terminal.set_up()
        return _run(arguments)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _run(arguments: Sequence[str] | None) -> int:
    import click  # noqa: PLC0415

    from vmstackctl import asking, commands, problems, terminal  # noqa: PLC0415
    from vmstackctl.options import Choices  # noqa: PLC0415
    from vmstackctl.values import printable  # noqa: PLC0415
    from vmstackd.api.errors import VmstackError  # noqa: PLC0415

    choices = Choices()
    try:
        code = commands.cli.main(
            arguments,
            prog_name=asking.PROGRAM,
            complete_var=commands.COMPLETION_VARIABLE,
            standalone_mode=False,
            obj=choices,
        )
    except VmstackError as error:
        terminal.complain(problems.explain(error, program=choices.program, certified=choices.certified))
        return problems.exit_code(error)
    except click.Abort:
        return EXIT_INTERRUPTED
    except click.ClickException as error:
        terminal.complain(problems.explain_usage(error))
        return error.exit_code
    except terminal.ReaderGone:
        terminal.abandon_stdout()
        return EXIT_DONE
    except OSError as error:
        terminal.abandon_stdout()
        terminal.complain(f"cannot write: {error.strerror or error}")
        return EXIT_FAILED
    except Exception as error:
        what = printable(f"{type(error).__name__}: {error}")
        terminal.complain(f"unexpected {what}; this is a mistake in vmstackctl, please report it")
        return EXIT_FAILED
    return code if isinstance(code, int) else EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
