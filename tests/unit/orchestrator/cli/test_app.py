"""The command line: a frozen list of options, one readable message for what goes wrong, and exit codes."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import orchestrator.cli.app as cli
from cluster.errors import DataError, RunFailed
from cluster.settings import storage_path
from jobs.run.outcome import Outcome, Status, event
from jobs.spec.finetune import Spec
from jobs.spec.load import dump_spec, load_spec
from orchestrator.cli.help_groups import SYNONYMS
from orchestrator.cli.output import exit_on_error

# Scripts depend on these: whoever changes the list changes CHANGELOG.md too.
COMMANDS = {
    "run": {"SPEC", "--set", "--resume", "--address", "--name", "--price", "--quiet"},
    "advise": {"SPEC", "--set", "--on", "--host-memory", "--tasks", "--goal", "--price", "--json"},
    "plan": {"SPEC", "--set", "--on", "--host-memory", "--price", "--accuracy", "--storage", "--json"},
    "validate": {"SPEC", "--set", "--json"},
    "runs": {"--storage", "--json"},
    "show": {"RUN", "--storage", "--price", "--json"},
    "stop": {"RUN", "--storage"},
    "save": {"RUN", "--storage"},
    "export": {"RUN", "--to", "--base-weight", "--merged", "--storage"},
    "spec": {"--kind", "--json-schema"},
    "sweep extend": {
        "SWEEP", "--runs", "--trials", "--tokens", "--minutes", "--gpu-hours", "--address", "--storage", "--quiet",
    },
    "sweep narrow": {"SWEEP", "--set", "--storage"},
    "sweep leaderboard": {"SWEEP", "--storage", "--json"},
    "sweep status": {"SWEEP", "--storage", "--json"},
    "sweep report": {"SWEEP", "--html", "--storage", "--json"},
    "sweep stop": {"SWEEP", "TRIAL", "--storage"},
    "upload": {"PATH", "URL", "--replace", "--json", "--quiet"},
    "gc": {
        "--storage", "--older-than", "--max-size", "--keep-last", "--checkpoints-only", "--prepared", "--no-server",
        "--dry-run", "--json",
    },
    "submit": {
        "SPEC", "--set", "--sweep", "--name", "--tenant", "--priority", "--after", "--key", "--check", "--wait",
        "--follow", "--json", "--url",
    },
    "queue": {"--all", "--state", "--tenant", "--limit", "--json", "--url"},
    "status": {"JOB", "--json", "--url"},
    "logs": {"JOB", "-f", "--source", "--tail", "--json", "--url"},
    "why": {"JOB", "--json", "--url"},
    "cancel": {"JOB", "--json", "--url"},
    "pause": {"JOB", "--json", "--url"},
    "resume": {"JOB", "--json", "--url"},
    "retry": {"JOB", "--json", "--url"},
    "release": {"JOB", "--force", "--json", "--url"},
    "priority": {"JOB", "--to", "--json", "--url"},
    "serve": {
        "--store", "--address", "--host", "--port", "--url", "--shared",
        "--python", "--protected-s", "--register-s", "--silent-s", "--grace-s", "--retention-days",
        "--most-ray-submitted", "--autoscaler", "--take-over", "--embedded", "--verbose", "--tls-cert", "--tls-key",
    },
    "tokens add": {"NAME", "--role", "--tenant", "--expires", "--store", "--url", "--json"},
    "tokens list": {"--store", "--url", "--json"},
    "tokens revoke": {"NAME", "--store", "--url"},
    "nodes": {"--json", "--url"},
    "cordon": {"NODE", "--reason", "--json", "--url"},
    "uncordon": {"NODE", "--json", "--url"},
    "drain": {"NODE", "--reason", "--deadline", "--stop-all", "--json", "--url"},
    "tenants list": {"--json", "--url"},
    "tenants set": {
        "NAME", "--weight", "--guaranteed", "--limit", "--max-priority", "--max-queued", "--max-runtime",
        "--max-gpu-hours", "--root", "--secret", "--json", "--url",
    },
    "usage": {"--month", "--tenant", "--json", "--url"},
    "events": {"--job", "--limit", "-f", "--json", "--url"},
    "completion": {"SHELL"},
    "simulate": {
        "TRACE", "--nodes", "--gpus-per-node", "--policy", "--what-if-nodes", "--jitter", "--preemption-cost-s",
        "--failures-per-node-day", "--schedule", "--report", "--json", "--quiet",
    },
    "data generate": {
        "SPEC", "--to", "--set", "--samples", "--max-tokens", "--temperature", "--json", "--quiet",
    },
    "data check": {"SPEC", "--set", "--address", "--html", "--json", "--quiet"},
    "data prepare": {"SPEC", "--set", "--address", "--json", "--quiet"},
    "data show": {"SPEC", "--set", "--n", "--from", "--split", "--json"},
}  # fmt: skip
SPEC = """\
model: {path: ./m, task: sequence-classification}
data: {train: d.csv, format: classification, labels: [neg, pos]}
train: {max_steps: 5, per_device_train_batch_size: 3}
resources: {num_workers: 2}
"""


@pytest.fixture
def job(tmp_path: Path) -> str:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "m" / "tokenizer.json").touch()
    (tmp_path / "m" / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    (tmp_path / "d.csv").write_text("text,label\ngood,pos\nbad,neg\n")
    (tmp_path / "job.yaml").write_text(SPEC)
    return str(tmp_path / "job.yaml")


def call(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli.app, arguments)
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize(("code", "said"), [(None, "error: interrupted\n"), (0, ""), (130, "")])
def test_ctrl_c_is_the_usual_end_of_what_goes_on_until_then(
    code: int | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as caught, exit_on_error(code):
        raise KeyboardInterrupt
    assert caught.value.exit_code == (130 if code is None else code)
    assert capsys.readouterr().err == said


def commands_of(group: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """All commands by their full names, those of groups within the group too."""
    found = []
    for name, command in group.commands.items():
        inner = getattr(command, "commands", None)
        found += commands_of(command, f"{prefix}{name} ") if inner else [(f"{prefix}{name}", command)]
    return found


def test_the_options_of_the_server_have_the_names_and_defaults_of_the_servers_settings() -> None:
    from orchestrator.server.process import Options

    command = typer.main.get_command(cli.app).commands["serve"]  # type: ignore[attr-defined]
    defaults = {one.name: () if one.multiple else one.default for one in command.params}
    assert defaults == dataclasses.asdict(Options())


def test_commands_and_options_are_the_frozen_ones() -> None:
    group: Any = typer.main.get_command(cli.app)
    found = {
        name: {
            parameter.metavar if parameter.param_type_name == "argument" else parameter.opts[0]
            for parameter in command.params
        }
        for name, command in commands_of(group)
    }
    assert found == COMMANDS
    assert {parameter.opts[0] for parameter in group.params} == {"--version"}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_has_an_example(command: str) -> None:
    code, printed, _ = call(*command.split(), "--help")
    assert code == 0 and f"Example:  fleetune {command}" in printed


def test_help_has_groups_and_fits_a_line_for_every_command() -> None:
    code, printed, _ = call("--help")
    listed = printed.partition("Specs, data and runs:")[2]
    assert code == 0 and listed.index("The queue:") < listed.index("\n  submit ") < listed.index("The cluster:")
    assert "..." not in listed and "Commands:" not in printed


@pytest.mark.parametrize(
    ("typed", "meant"), [("train", "run"), ("trian", "run"), ("ls", "queue"), ("kill", "cancel"), ("stat", "status")]
)
def test_a_command_of_other_tools_is_answered_with_ours(typed: str, meant: str) -> None:
    code, _, errors = call(typed, "job.yaml")
    assert code == 2 and f"No such command {typed!r}. Did you mean {meant!r}?" in errors


def test_synonyms_name_commands_that_there_are_and_hide_none() -> None:
    commands = set(typer.main.get_command(cli.app).commands)  # type: ignore[attr-defined]
    assert set(SYNONYMS.values()) <= commands and not commands & set(SYNONYMS)


def test_version_is_printed() -> None:
    assert call("--version")[1].startswith("fleetune ")


def test_the_command_line_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'ray', 'transformers', 'deepspeed', 'pyarrow', 'numpy', 'rich', 'httpx', 'orchestrator.api'}"
    code = f"import sys, orchestrator.cli.app; sys.exit(', '.join({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr.strip() == ""


def test_validate_says_what_would_run(job: str) -> None:
    code, printed, errors = call("validate", job, "--set", "train.warmup_ratio=0.1")
    assert (code, errors) == (0, "")
    for part in ("rows per step = 6", "5 steps", "2 classes", "10% warmup", "2 x (1 GPU", "ok"):
        assert part in printed


def test_validate_in_json_carries_plan_warnings_and_the_resolved_spec(job: str) -> None:
    code, printed, _ = call("validate", job, "--json", "--set", "eval.metrics=[accuracy]")
    answer = json.loads(printed)
    assert code == 0 and "held-out" in answer["warnings"][0]
    assert Spec.model_validate(answer["spec"]).data.train[0].path == str(Path(job).parent / "d.csv")


def test_a_price_that_no_table_would_show_is_refused(job: str) -> None:
    for arguments in (["run", job, "--price", "2"], ["show", "a-run", "--price", "2", "--json"]):
        result = CliRunner().invoke(cli.app, arguments)
        assert result.exit_code == 2 and "--price" in result.stderr and "comparison" in result.stderr, result.output


def test_bad_spec_is_one_message_on_stderr_and_exit_code_2(job: str) -> None:
    code, printed, errors = call("validate", job, "--set", "train.lr=1", "--set", "seed=x")
    assert (code, printed) == (2, "")
    assert errors.splitlines() == [
        "error:",
        "--set: train.lr: unknown key; it is called learning_rate here",
        '--set: seed: must be a whole number, but is the text "x"',
    ]


def test_dashboard_address_is_answered_with_the_command_that_takes_it(job: str) -> None:
    code, _, errors = call("run", job, "--address", "http://head:8265")
    assert code == 2
    assert f"ray job submit --address http://head:8265 --working-dir . -- python -m jobs.finetune {job}" in errors


@pytest.fixture
def fake_run(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stands in for the run itself: remembers how it was called; `does` is what it does."""
    seen: dict[str, Any] = {}

    def run_on_ray(spec: Spec, *, address: str | None, progress: Any, resume: str | None) -> Outcome:
        seen.update(spec=spec, address=address, resume=resume)
        progress.event(event("phase", "run x in /runs/x", phase="start", root="/runs/x"))
        progress.step({"step": 5, "loss": 0.25})
        done = seen.get("does", Status.SUCCEEDED)
        if isinstance(done, BaseException):
            raise done
        return Outcome(
            status=done,
            step=5,
            reason=None if done is Status.SUCCEEDED else "because",
            metrics={"loss": 0.25, "eval_accuracy": 0.875},
            metrics_before={"eval_accuracy": 0.5},
            model_path="/runs/x/model",
            ended_at=datetime.datetime.now(datetime.UTC),
        )

    module = types.ModuleType("jobs.finetune")
    module.run_on_ray = run_on_ray  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "jobs.finetune", module)
    return seen


def test_run_prints_progress_and_the_result(job: str, fake_run: dict[str, Any]) -> None:
    code, printed, _ = call("run", job, "--address", "auto", "--name", "mine", "--set", "seed=7")
    assert code == 0
    assert (fake_run["address"], fake_run["resume"]) == ("auto", None)
    assert (fake_run["spec"].name, fake_run["spec"].seed) == ("mine", 7)
    for part in ("run x in /runs/x", "step 5  loss 0.2500", "accuracy 0.5", "accuracy 0.875", "/runs/x/model"):
        assert part in printed


def test_quiet_run_prints_the_result_only(job: str, fake_run: dict[str, Any]) -> None:
    _, printed, _ = call("run", job, "--quiet")
    assert printed.startswith("status") and "/runs/x/logs" in printed


@pytest.mark.parametrize(
    ("done", "expected"),
    [
        (Status.SUCCEEDED, 0),
        (Status.FAILED, 1),
        (Status.INTERRUPTED, 130),
        (DataError("no rows left"), 2),
        (RunFailed("out of memory"), 1),
        (KeyboardInterrupt(), 130),
        (ZeroDivisionError("by zero"), 1),
    ],
)
def test_exit_code_says_how_it_ended(job: str, fake_run: dict[str, Any], done: Any, expected: int) -> None:
    fake_run["does"] = done
    code, _, errors = call("run", job)
    assert code == expected
    assert "Traceback" not in errors


def test_unexpected_error_is_one_line_and_the_traceback_is_kept(job: str, fake_run: dict[str, Any]) -> None:
    fake_run["does"] = ZeroDivisionError("by zero")
    _, _, errors = call("run", job)
    assert "unexpected ZeroDivisionError: by zero" in errors
    log = Path(errors.strip().rpartition(" ")[2])
    assert "Traceback" in log.read_text()
    log.unlink()


def test_bad_name_is_refused_before_anything_starts(job: str, fake_run: dict[str, Any]) -> None:
    code, _, errors = call("run", job, "--name", "My Run")
    assert code == 2 and "lower-case letters" in errors and not fake_run


def test_run_goes_on_with_its_own_spec_or_with_another(job: str, fake_run: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "runs" / "abc-1"
    run.mkdir(parents=True)
    (run / "spec.json").write_bytes(dump_spec(load_spec(job)))
    assert call("run", "--resume", str(run), "--set", "resources.num_workers=4")[0] == 0
    assert (fake_run["resume"], fake_run["spec"].resources.num_workers) == (str(run), 4)
    assert call("run", job, "--resume", "abc", "--set", "seed=7")[0] == 0
    assert (fake_run["resume"], fake_run["spec"].seed) == (str(run), 7)
    code, _, errors = call("run", job, "--resume", "abd-1")
    assert code == 2 and "did you mean abc-1?" in errors


def test_run_without_spec_and_without_run_is_refused(fake_run: dict[str, Any]) -> None:
    code, _, errors = call("run")
    assert code == 2 and "--resume RUN" in errors and not fake_run


def test_dashboard_s_answer_carries_the_run_to_go_on_with() -> None:
    _, _, errors = call("run", "--resume", "abc", "--address", "http://head:8265")
    assert "-- python -m jobs.finetune --resume abc" in errors


@pytest.mark.parametrize("order", ["stop", "save"])
def test_orders_go_to_the_run_that_is_meant(tmp_path: Path, order: str) -> None:
    (tmp_path / "abc-1").mkdir()
    (tmp_path / "abc-1" / "spec.json").write_text("{}")
    code, printed, _ = call(order, "abc", "--storage", str(tmp_path))
    assert code == 0 and printed.startswith("run abc-1 will save a checkpoint at its next step")
    assert (tmp_path / "abc-1" / order).exists()
    assert call(order, "nope", "--storage", str(tmp_path))[0] == 2


def test_export_goes_to_the_run_that_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "abc-1").mkdir()
    (tmp_path / "abc-1" / "spec.json").write_text("{}")
    module = types.ModuleType("jobs.training.checkpoint.to_model")
    module.export_run = lambda root, to, say: f"{root} -> {to}"  # type: ignore[attr-defined]
    module.merge_run = lambda root, to, say: f"{root}, merged -> {to}"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "jobs.training.checkpoint.to_model", module)
    code, printed, _ = call("export", "abc", "--to", "/out", "--storage", str(tmp_path))
    assert (code, printed) == (0, f"model {tmp_path}/abc-1 -> /out\n")
    code, printed, _ = call("export", "abc", "--merged", "--storage", str(tmp_path))
    assert (code, printed) == (0, f"model {tmp_path}/abc-1, merged -> None\n")


def test_runs_and_show_read_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "abc-1").mkdir()
    (tmp_path / "abc-1" / "spec.json").write_text('{"model": {"path": "/m"}}')
    code, printed, _ = call("runs", "--storage", str(tmp_path))
    assert code == 0 and printed.splitlines()[1].startswith("abc-1  lost")
    assert json.loads(call("runs", "--storage", str(tmp_path), "--json")[1])[0]["name"] == "abc-1"
    assert "/m" in call("show", "abc", "--storage", str(tmp_path))[1]
    assert json.loads(call("show", "abc", "--storage", str(tmp_path), "--json")[1])["summary"]["status"] == "lost"
    code, _, errors = call("show", "abd-1", "--storage", str(tmp_path))
    assert code == 2 and "did you mean abc-1?" in errors


def test_storage_path_comes_from_the_environment() -> None:
    assert storage_path({}) == "runs"
    assert storage_path({"FLEETUNE_STORAGE_PATH": "s3://b/runs"}) == "s3://b/runs"


def test_reference_names_every_field_and_the_schema_is_json() -> None:
    _, printed, _ = call("spec")
    assert "learning_rate: number; > 0.0; <= 1.0; default 2e-05" in printed and "path: text; (*)" in printed
    assert json.loads(call("spec", "--json-schema")[1])["title"] == "Spec"


def test_a_command_that_used_torch_leaves_with_its_code_what_it_printed_and_its_last_calls(
    tmp_path: Path,
) -> None:
    """It skips the interpreter's cleanup, which takes a second once Ray and torch are loaded."""
    (tmp_path / "torch.py").touch()
    program = """if True:
        import atexit, sys, threading
        import torch, orchestrator.cli.app, orchestrator.cli.entry

        def ends_with(code):
            print("said", end="")
            sys.exit(code)

        atexit.register(print, " last")
        orchestrator.cli.app.main = lambda: ends_with(75)
        threading.Thread(target=threading.Event().wait).start()  # an interpreter would wait for it for ever
        orchestrator.cli.entry.main()
    """
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[4]}"}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (75, "said last\n", "")
