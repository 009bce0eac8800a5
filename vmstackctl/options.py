"""How the command line is put together: options that stand anywhere, examples before all else in the help."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from vmstackctl.values import parse_address

DEFAULT_ADDRESS = "unix:/run/vmstack/vmstackd.sock"
DEFAULT_TIMEOUT = 30.0
LONGEST_TIMEOUT = 3600
ADDRESS_VARIABLE = "VMSTACKCTL_ADDRESS"
FORMATS = ("table", "json", "name")

EXIT_CODES = {
    0: "done",
    1: "failed",
    2: "wrong usage, or a request that makes no sense",
    3: "there is no such VM",
    4: "no capacity",
    5: "denied",
    6: "vmstackd or its hypervisor is not available, or did not answer in time",
    130: "interrupted with Ctrl-C (watch and events end with 0 then)",
}

_T = TypeVar("_T")


class Choices:
    """The options that concern all commands."""

    def __init__(self) -> None:
        self.address = ""
        self.timeout = DEFAULT_TIMEOUT
        self.output = FORMATS[0]
        self.colour = "auto"

    def take(self, name: str, value: Any, *, typed: bool) -> None:  # noqa: ANN401  as the option's type has it
        """An option; one that was not typed, but found in the environment, does not replace one that was."""
        match name:
            case "socket" | "address" if typed or not self.address:
                self.address = value
            case "timeout":
                self.timeout = value
            case "output":
                self.output = value
            case "color":
                self.colour = value


class Typed(click.ParamType):  # type: ignore[type-arg]  # generic in click 8.5, not in 8.1
    """A value that a function reads, raising ValueError with what is allowed."""

    def __init__(self, name: str, read: Callable[[str], object]) -> None:
        self.name = name
        self._read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401
        """As click asks for."""
        if not isinstance(value, str):
            return value
        try:
            return self._read(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _Path(click.Path):
    """A path from anywhere; the daemon's working directory is another. Completed by the shell."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ANN401
        if not value:
            self.fail("it is empty", param, ctx)
        return str(Path(value).absolute())


ABSOLUTE_PATH = _Path()


class Seconds(click.FloatRange):
    """A number, of which click takes "nan" for one in any range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401
        """As click asks for."""
        seconds = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value!r} is not a number", param, ctx)
        return seconds


def _note(ctx: click.Context, param: click.Parameter, value: Any) -> None:  # noqa: ANN401  as the type has it
    source = ctx.get_parameter_source(param.name or "")
    if value is not None and source in (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT):
        ctx.ensure_object(Choices).take(param.name or "", value, typed=source is ParameterSource.COMMANDLINE)


def _shared(*, everywhere: bool) -> list[click.Parameter]:
    """The options for all commands. everywhere: as they stand after a command, where the help is silent about them."""

    def option(name: str, **attributes: Any) -> click.Option:  # noqa: ANN401  whatever click takes
        return click.Option([name], expose_value=False, callback=_note, hidden=everywhere, **attributes)

    return [
        option("--socket", metavar="PATH", type=ABSOLUTE_PATH, help="Socket of vmstackd. The same as --address PATH."),
        option(
            "--address",
            metavar="ADDRESS",
            type=Typed("address", parse_address),
            envvar=None if everywhere else ADDRESS_VARIABLE,
            show_envvar=True,
            help=f"Where vmstackd is: unix:/PATH or /PATH.  [default: {DEFAULT_ADDRESS}]",
        ),
        option(
            "--timeout",
            metavar="SECONDS",
            type=Seconds(0, LONGEST_TIMEOUT, min_open=True),
            help=f"How long to wait for an answer.  [default: {DEFAULT_TIMEOUT:g}]",
        ),
        option(
            "--output",
            type=click.Choice(FORMATS),
            help="table: for people; json: one object per reply and line; name: one VM name per line.  "
            "[default: table]",
        ),
        option(
            "--color",
            type=click.Choice(("auto", "always", "never")),
            help="auto: on a terminal, unless NO_COLOR is set.  [default: auto]",
        ),
    ]


class _Examples(click.Command):
    """A command whose help begins with examples."""

    def __init__(self, *arguments: Any, examples: str = "", **attributes: Any) -> None:  # noqa: ANN401  click's
        super().__init__(*arguments, **attributes)
        self.examples = inspect.cleandoc(examples).splitlines()

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Examples"):
            for line in self.examples:
                formatter.write(f"{'':>{formatter.current_indent}}{line}\n")
        formatter.write_paragraph()
        self.format_usage(ctx, formatter)
        self.format_help_text(ctx, formatter)
        self.format_options(ctx, formatter)
        self.format_epilog(ctx, formatter)


class Command(_Examples):
    """One command. The options for all commands may stand after it, too."""

    def __init__(self, *arguments: Any, **attributes: Any) -> None:  # noqa: ANN401  click's
        super().__init__(*arguments, **attributes)
        self.params += _shared(everywhere=True)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  click's
        formatter.write_paragraph()
        formatter.write_text("The options of vmstackctl itself may stand here too: vmstackctl --help")


class Group(_Examples, click.Group):
    """All commands, in the order in which they are defined."""

    command_class = Command

    def __init__(self, *arguments: Any, **attributes: Any) -> None:  # noqa: ANN401  click's
        super().__init__(*arguments, **attributes)
        self.params += _shared(everywhere=False)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's
        return list(self.commands)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  click's
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), meaning) for code, meaning in EXIT_CODES.items()])
