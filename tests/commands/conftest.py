"""The command line as a user calls it, in this process."""

from collections.abc import Callable

import pytest

from tinygmf.commands.main import main


@pytest.fixture
def failure(capsys) -> Callable[..., str]:
    """Call a command that must fail; return its one line on standard error."""

    def call(*arguments: object) -> str:
        assert main([str(argument) for argument in arguments]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        [line] = captured.err.splitlines()
        assert line.startswith("tinygmf: ")
        return line

    return call
