"""How the command line is put together: options that stand anywhere, examples before all else in the help."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from vmstackctl.values import parse_address, parse_host, parse_memory, parse_ratio

DEFAULT_ADDRESS = "unix:/run/vmstack/vmstackd.sock"
CLUSTER_ADDRESS = "unix:/run/vmstack/globald.sock"
DEFAULT_TIMEOUT = 30.0
LONGEST_TIMEOUT = 3600
ADDRESS_VARIABLE = "VMSTACKCTL_ADDRESS"
TLS_VARIABLES = {
    "tls_ca": "VMSTACKCTL_TLS_CA",
    "tls_cert": "VMSTACKCTL_TLS_CERT",
    "tls_key": "VMSTACKCTL_TLS_KEY",
}
"""By name of the option, which is that of the key in vmstackctl.toml too."""
FORMATS = ("table", "json", "name")

EXIT_CODES = {
    0: "done",
    1: "failed",
    2: "wrong usage, or a request that makes no sense",
    3: "there is no such VM or host",
    4: "no capacity",
    5: "denied",
    6: "a daemon or its hypervisor is not available, or did not answer in time",
    130: "interrupted with Ctrl-C (watch and events end with 0 then)",
}

_LOCAL = ("output", "color")
"""Of the options for all commands, those that make sense where no daemon is asked."""

_T = TypeVar("_T")


class Choices:
    """The options that concern all commands."""

    def __init__(self) -> None:
        self.address = self.address_in_environment = ""
        self.cluster = False
        self.tls: dict[str, str] = {}
        self.timeout = DEFAULT_TIMEOUT
        self.output = FORMATS[0]
        self.colour = "auto"
        self.program = ""
        """Which daemon is asked, as far as is known: "vmstackd", "globald" or empty."""
        self.certified = False
        """Whether a certificate introduces us to it."""

    def take(self, name: str, value: Any, *, typed: bool) -> None:  # noqa: ANN401  as the option's type has it
        """An option; one that was not typed, but found in the environment, does not replace one that was."""
        match name:
            case "socket" | "address" if typed:
                self.address = value
            case "address":
                self.address_in_environment = value
            case "cluster":
                self.cluster = True
            case "tls_ca" | "tls_cert" | "tls_key" if typed or name not in self.tls:
                self.tls[name] = value
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
HOST = Typed("host", parse_host)


def size_options(command: Callable[..., None]) -> Callable[..., None]:
    """--vcpus, --memory and --level of a VM."""
    for option in (
        click.option("--level", metavar="LEVEL", type=Typed("level", parse_ratio), required=True,
                     help="vCPUs per CPU: 2, 1.5 or 2:1."),
        click.option("--memory", metavar="SIZE", type=Typed("size", parse_memory), required=True,
                     help="512M, 1.5G or 1T, in powers of 1024; a plain number is GiB."),
        click.option("--vcpus", metavar="N", type=int, required=True, help="Virtual CPUs."),
    ):  # fmt: skip
        command = option(command)
    return command


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


_TLS_HELP = {
    "tls_ca": "Certificate of the cluster's authority, for HOST:PORT.",
    "tls_cert": "Our certificate, signed by it.",
    "tls_key": "The key of our certificate.",
}


def _shared(*, everywhere: bool) -> list[click.Parameter]:
    """The options for all commands. everywhere: as they stand after a command, where the help is silent about them."""

    def option(name: str, **attributes: Any) -> click.Option:  # noqa: ANN401  whatever click takes
        return click.Option([name], expose_value=False, callback=_note, hidden=everywhere, **attributes)

    return [
        option("--cluster", is_flag=True, help=f"Ask globald, at {CLUSTER_ADDRESS}."),
        option("--socket", metavar="PATH", type=ABSOLUTE_PATH, help="Socket of a daemon. The same as --address PATH."),
        option(
            "--address",
            metavar="ADDRESS",
            type=Typed("address", parse_address),
            envvar=None if everywhere else ADDRESS_VARIABLE,
            show_envvar=True,
            help="Where vmstackd or globald is: unix:/PATH, /PATH or HOST:PORT.  "
            f"[default: that of vmstackctl.toml, else {DEFAULT_ADDRESS}]",
        ),
        *(
            option(
                f"--{name.replace('_', '-')}",
                metavar="FILE",
                type=ABSOLUTE_PATH,
                envvar=None if everywhere else variable,
                show_envvar=True,
                help=_TLS_HELP[name],
            )
            for name, variable in TLS_VARIABLES.items()
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
            help="table: for people; json: one object per reply and line; name: one name per line.  [default: table]",
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
    """One command. The options for all commands may stand after it, too, but for those that it has itself."""

    def __init__(self, *arguments: Any, **attributes: Any) -> None:  # noqa: ANN401  click's
        super().__init__(*arguments, **attributes)
        own = {option for param in self.params for option in param.opts}
        self.params += [option for option in _shared(everywhere=True) if not own & {*option.opts}]

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  click's
        formatter.write_paragraph()
        formatter.write_text("The options of vmstackctl itself may stand here too: vmstackctl --help")


class LocalCommand(Command):
    """One that asks no daemon: without the options that say which one is asked, and how."""

    def __init__(self, *arguments: Any, **attributes: Any) -> None:  # noqa: ANN401  click's
        super().__init__(*arguments, **attributes)
        self.params = [param for param in self.params if param.name in _LOCAL or not getattr(param, "hidden", False)]

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        pass


class Group(_Examples, click.Group):
    """Commands within a command, in the order in which they are defined."""

    command_class = Command
    everywhere = True
    """Whether the options for all commands may stand after it, rather than being explained there."""

    def __init__(self, *arguments: Any, **attributes: Any) -> None:  # noqa: ANN401  click's
        super().__init__(*arguments, **attributes)
        self.params += _shared(everywhere=self.everywhere)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's
        return list(self.commands)


class Root(Group):
    """All commands. late: those that are imported when somebody asks for them, after all others."""

    everywhere = False

    def __init__(self, *arguments: Any, **attributes: Any) -> None:  # noqa: ANN401  click's
        super().__init__(*arguments, **attributes)
        self.late: dict[str, Callable[[], click.Command]] = {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), *self.late]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """As click asks for."""
        late = self.late.get(cmd_name)
        return late() if late else super().get_command(ctx, cmd_name)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  click's
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), meaning) for code, meaning in EXIT_CODES.items()])
