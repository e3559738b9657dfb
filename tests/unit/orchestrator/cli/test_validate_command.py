"""`fleetune validate` of a command: its working directory and its program are looked for, and nothing is started."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli.app import app

SPEC = """kind: command
command: [sh, -c, "exit 3"]
working_dir: code
env: {MODE: fast}
resources: {num_workers: 2, gpus_per_worker: 1}
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    (tmp_path / "code").mkdir()
    (tmp_path / "job.yaml").write_text(SPEC)
    return tmp_path / "job.yaml"


def call(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["validate", *arguments])
    return result.exit_code, result.output


def test_a_correct_command_is_ok(job: Path) -> None:
    code, said = call(str(job))
    assert code == 0 and said.endswith("ok: the checks found no problem\n")
    for part in ("sh -c 'exit 3'", "2 x (1 GPU, 1 CPU)", "MODE", f"checked      working_dir: {job.parent}/code"):
        assert part in said
    assert "not checked  nodes: whether the program can be started there" in said


def test_its_json_has_the_checks_and_the_spec(job: Path) -> None:
    code, said = call(str(job), "--json", "--set", "resources.gpus_per_worker=0")
    answer = json.loads(said)
    assert code == 0 and answer["warnings"] == [] and answer["plan"]["workers"] == "2 x (no GPU, 1 CPU)"
    assert answer["spec"]["working_dir"] == str(job.parent / "code")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("working_dir=nope", "--set: working_dir: "),
        ("command=[./nope.sh]", "--set: command: ./nope.sh is not a program that can be started in "),
    ],
)
def test_what_is_not_there_is_refused_with_its_place(job: Path, change: str, said: str) -> None:
    code, printed = call(str(job), "--set", change)
    assert code == 2 and printed.startswith(f"error: {said}")


def test_a_program_that_only_the_nodes_may_have_is_a_warning(job: Path) -> None:
    code, said = call(str(job), "--set", "command=[no-such-program]")
    assert code == 0 and "warning: command: there is no program no-such-program here, and every node needs it" in said


def test_a_program_beside_an_unknown_directory_is_not_checked(job: Path) -> None:
    code, said = call(str(job), "--set", "working_dir=null", "--set", "command=[./run.sh]")
    assert code == 0 and "not checked  command: ./run.sh, because working_dir is not given" in said
