"""Output that nobody reads, and standard streams that are closed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer

from orchestrator.cli.options import width
from orchestrator.cli.output import exit_on_error
from tests.support.gangs import ROOT

FLEETUNE = [sys.executable, "-m", "orchestrator"]


@pytest.mark.parametrize(("arguments", "code"), [(["spec"], 141), (["validate", "/no/such"], 2)])
@pytest.mark.parametrize("stderr", [subprocess.DEVNULL, subprocess.STDOUT])
def test_the_exit_code_says_that_nobody_reads_the_output(arguments: list[str], code: int, stderr: int) -> None:
    with subprocess.Popen([*FLEETUNE, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr) as runs:
        assert runs.stdout is not None
        runs.stdout.close()
    assert runs.returncode == code


def test_another_pipe_that_breaks_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as caught, exit_on_error():
        raise BrokenPipeError("of a socket")
    said = capsys.readouterr().err
    assert caught.value.exit_code == 1 and "unexpected BrokenPipeError: of a socket" in said
    Path(said.strip().rpartition(" ")[2]).unlink()


def test_a_closed_stdout_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert width() is None


def test_closed_streams_lead_nowhere_also_for_child_processes(tmp_path: Path) -> None:
    result = tmp_path / "result"
    program = f"""if True:
        import os, subprocess, sys
        from orchestrator.cli.entry import open_closed_streams

        open_closed_streams()
        print("lost", file=sys.stderr)
        print("lost", sys.stdout.isatty(), flush=True)
        code = subprocess.call(["sh", "-c", "cat; echo lost; echo lost >&2"])
        with open({str(result)!r}, "w") as file:
            file.write(f"{{file.fileno() > 2}} {{code}}")
    """
    command = ["sh", "-c", 'exec "$0" "$@" <&- >&- 2>&-', sys.executable, "-c", program]
    assert subprocess.run(command, cwd=ROOT).returncode == 0
    assert result.read_text() == "True 0"
