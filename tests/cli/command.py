"""The command line called in this process: fast, for everything that ends by itself."""

from __future__ import annotations

import contextlib
import io
import os
from unittest import mock

from tests.running import Finished, clean_environment, command
from vmstackd.__main__ import main


def call(*flags: str, environment: dict[str, str] | None = None) -> Finished:
    """What ``python -m vmstackd FLAGS`` would answer, were it a process of its own."""
    out, err = io.StringIO(), io.StringIO()
    arguments = command(*flags)[3:]
    with (
        mock.patch.dict(os.environ, clean_environment(environment), clear=True),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            code = main(arguments)
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
    return Finished(code=code, out=out.getvalue(), err=err.getvalue())


def one_line(text: str) -> str:
    """The text without its end, if it is one printable line."""
    assert text.endswith("\n")
    line = text.removesuffix("\n")
    assert line.isprintable(), text
    return line
