"""What options of several commands refuse before any work begins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import orchestrator.cli.app as cli

JOB = """\
model: {path: ./m, task: causal-lm}
data: {train: data/d.jsonl, eval: "held/*.jsonl", format: text}
train: {max_steps: 5}
"""
DASHBOARD = "http://head:8265"


@pytest.fixture
def job(tmp_path: Path) -> str:
    for name in ("m/config.json", "data/d.jsonl", "held/a.jsonl"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text('{"text": "a"}\n')
    (tmp_path / "job.yaml").write_text(JOB)
    return str(tmp_path / "job.yaml")


def refused(*arguments: str) -> str:
    result = CliRunner().invoke(cli.app, arguments)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    return result.stderr


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("job.yaml", "job.yaml is the spec itself: give another file"),
        ("data/d.jsonl", "is the data of data.train: give another file"),
        ("data/../data/d.jsonl", "is the data of data.train: give another file"),
        ("held/a.jsonl", "is in the data of data.eval: give a file elsewhere"),
        ("m/config.json", "is in the model: give a file elsewhere"),
        ("held", "is not the name of a file"),
        ("new/", "is not the name of a file"),
        ("job.yaml/new.html", "job.yaml is not a directory"),
    ],
)
def test_a_page_of_the_data_takes_the_place_of_nothing_that_the_spec_reads(job: str, name: str, said: str) -> None:
    folder = Path(job).parent
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    errors = refused("data", "check", job, "--html", f"{folder}/{name}")
    assert (
        errors.startswith(f"error: --html {folder}/{name}" if said[0] != "i" else "error: --html ") and said in errors
    )
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("command", ["check", "prepare"])
def test_commands_about_data_take_no_dashboard(job: str, command: str) -> None:
    errors = refused("data", command, job, "--address", DASHBOARD)
    assert "is Ray's dashboard" in errors and errors.endswith("Give the cluster's address (auto, or HOST:6379)\n")


def test_a_sweep_and_a_comparison_are_submitted_to_a_dashboard_with_their_own_module(job: str, tmp_path: Path) -> None:
    space = {"learning_rate": {"min": 1e-5, "max": 1e-3, "log": True}}
    sweep = {"kind": "sweep", "base": job, "space": space, "budget": {"trials": 2}}
    (tmp_path / "sweep.json").write_text(json.dumps(sweep))
    errors = refused("run", f"{tmp_path}/sweep.json", "--address", DASHBOARD, "--set", "seeds=2")
    submit = f"ray job submit --address {DASHBOARD} --working-dir . -- python -m"
    assert errors.endswith(f"{submit} jobs.sweep {tmp_path}/sweep.json --set seeds=2\n")
    compare = {"kind": "compare", "base": job, "methods": ["full", "lora"]}
    (tmp_path / "compare.json").write_text(json.dumps(compare))
    errors = refused("run", f"{tmp_path}/compare.json", "--address", DASHBOARD)
    assert errors.endswith(f"{submit} jobs.compare {tmp_path}/compare.json\n")
    run = tmp_path / "runs" / "s-1"
    run.mkdir(parents=True)
    (run / "spec.json").write_text('{"kind": "sweep"}')
    assert "ray job submit" not in refused("run", "--resume", str(run), "--address", DASHBOARD)
    assert f"{submit} jobs.finetune {job}\n" in refused("run", job, "--address", DASHBOARD)


@pytest.mark.parametrize("amount", ["inf", "nan"])
@pytest.mark.parametrize("option", ["--runs", "--minutes", "--gpu-hours"])
def test_a_sweep_is_extended_by_finite_amounts(option: str, amount: str) -> None:
    assert f"{amount} is not a finite number" in refused("sweep", "extend", "any", option, amount)


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("run", "--resume", "a", "--resume", "b"), "--resume"),
        (("run", "job.yaml", "--name=a", "--name", "a"), "--name"),
        (("sweep", "extend", "any", "--runs", "1", "--runs", "2"), "--runs"),
        (("tenants", "--url", "http://a", "--url", "http://b", "list"), "--url"),
    ],
)
def test_an_option_that_is_given_twice_is_refused(arguments: tuple[str, ...], option: str) -> None:
    assert refused(*arguments).endswith(f"Error: {option} is given 2 times: give it once.\n")


def test_lists_and_flags_may_be_given_twice() -> None:
    said = refused("validate", "none.yaml", "--set", "a=1", "--set", "b=2", "--json", "--json")
    assert "none.yaml" in said and "times" not in said


def test_a_drain_has_one_deadline() -> None:
    errors = refused("drain", "n1", "--deadline", "2h", "--stop-all")
    assert errors == "error: --deadline and --stop-all exclude each other: give one of them\n"


def test_without_a_queue_commands_of_the_queue_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEETUNE_URL", "none")
    assert refused("queue").startswith("error: FLEETUNE_URL is none, which starts runs without the queue")


def test_an_unset_shell_variable_stops_no_run(tmp_path: Path) -> None:
    (tmp_path / "only-1").mkdir()
    (tmp_path / "only-1" / "spec.json").write_text("{}")
    assert "RUN is empty: is a shell variable not set?" in refused("stop", "", "--storage", str(tmp_path))
    assert not (tmp_path / "only-1" / "stop").exists()


@pytest.mark.parametrize("command", [("queue",), ("cancel", "a-1"), ("tenants",), ("tokens", "list")])
def test_an_unset_shell_variable_names_no_server(command: tuple[str, ...]) -> None:
    assert refused(*command, "--url", "") == "error: --url is empty: is a shell variable not set?\n"


def test_a_first_token_is_announced_when_it_exists(tmp_path: Path) -> None:
    store = str(tmp_path / "queue.db")
    errors = refused("tokens", "add", "boss", "--role", "admin", "--tenant", "vision", "--store", store)
    assert errors.startswith("error: an admin acts for all tenants") and "first token" not in errors
    result = CliRunner().invoke(cli.app, ["tokens", "add", "boss", "--role", "admin", "--store", store])
    assert result.exit_code == 0 and result.stderr.startswith("This is the first token")


def test_a_tenant_without_a_name_is_not_said_of_the_token(tmp_path: Path) -> None:
    store = str(tmp_path / "queue.db")
    errors = refused("tokens", "add", "anna", "--role", "viewer", "--tenant", "", "--store", store)
    assert errors.startswith("error: --tenant '' cannot be a tenant's name")
    assert "'an na' cannot be a token's name" in refused("tokens", "add", "an na", "--store", store)


@pytest.mark.parametrize("rest", [(), ("list",), ("set", "vision"), ("set", "vision", "--weight", "2")])
def test_options_of_a_group_hold_for_its_commands(rest: tuple[str, ...]) -> None:
    assert "'here:8400' is no URL of a server" in refused("tenants", "--url", "here:8400", *rest)
    if rest:
        said = refused("tenants", "--url", "here:8400", *rest, "--url", "there:8400")
        assert "'there:8400' is no URL of a server" in said


def test_every_option_of_a_group_is_one_of_its_commands() -> None:
    root: Any = typer.main.get_command(cli.app)
    groups = [one for one in root.commands.values() if hasattr(one, "commands")]
    for group in groups:
        for command in group.commands.values():
            assert {one.name for one in group.params} <= {one.name for one in command.params}, command.name
    assert {group.name for group in groups} == {"data", "sweep", "tokens", "tenants"}
