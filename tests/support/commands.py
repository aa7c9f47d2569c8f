"""The scripts of `analyses/` run in this process, which saves every test their imports."""

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from types import ModuleType
from unittest import mock

from analyses.run.arguments import parse


@dataclass(frozen=True)
class Done:
    code: int
    stdout: str
    stderr: str


def run(script: ModuleType, *arguments, code: int = 0) -> Done:
    """The script's main, with its exit code held against `code`."""
    out, err = io.StringIO(), io.StringIO()
    argv = ["x", *map(str, arguments)]
    with mock.patch.object(sys, "argv", argv), redirect_stdout(out), redirect_stderr(err):
        exit_code = script.main()
    assert exit_code == code, err.getvalue()[-3000:]
    return Done(exit_code, out.getvalue(), err.getvalue())


def parsed(kind: type, *arguments):
    """The options of a command that arguments give."""
    return parse(kind, "", [str(argument) for argument in arguments])
