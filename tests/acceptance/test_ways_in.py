"""The same run under Ray and under torchrun."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable

import pytest

from jobs.data.order.digest_chain import chain_of, from_hex, row_digests
from jobs.data.order.stream import step_plan
from jobs.data.prepared import Prepared
from jobs.run.checkpoints import committed_steps
from jobs.run.outcome import Status
from jobs.run.paths import prepared_root
from jobs.run.record import read_steps
from jobs.spec.load import load_spec
from jobs.storage.journal import read_journal
from tests.acceptance.conftest import fleetune, newest_run, outcome_of, runs_in, started
from tests.support.gangs import torchrun

WriteSpec = Callable[..., pathlib.Path]


def losses(root: str) -> list[float]:
    return [record["loss"] for record in read_journal(f"{root}/metrics")]


def test_under_ray_and_under_torchrun_the_losses_are_the_same(write_spec: WriteSpec, workshop: pathlib.Path) -> None:
    """With accumulation, a batch that does not divide, and dropout: to the last digit."""
    spec = write_spec(
        "gpt2", train__per_device_train_batch_size=1, train__global_batch_size=7, train__max_steps=8,
        data__eval_fraction=0.2, eval__metrics=["accuracy", "perplexity", "exact_match"], eval__eval_steps=5,
    )  # fmt: skip
    done = fleetune("run", spec)
    assert done.returncode == 0, done.stdout + done.stderr
    under_ray = newest_run(workshop)
    done = torchrun(2, "-m", "jobs.finetune", str(spec))
    assert done.returncode == 0, done.stdout + done.stderr
    under_torchrun = newest_run(workshop)
    assert under_ray != under_torchrun
    assert len(losses(under_ray.root)) == 8
    assert losses(under_ray.root) == losses(under_torchrun.root)
    ray_outcome, other_outcome = outcome_of(under_ray), outcome_of(under_torchrun)
    assert ray_outcome.metrics == pytest.approx(other_outcome.metrics)
    assert ray_outcome.metrics_before == pytest.approx(other_outcome.metrics_before)
    assert {"eval_loss", "eval_accuracy", "eval_perplexity", "eval_exact_match", "loss"} == set(ray_outcome.metrics)


def test_a_run_leaves_all_that_is_needed_to_understand_and_repeat_it(
    write_spec: WriteSpec, workshop: pathlib.Path
) -> None:
    spec = write_spec("bert", "labelled.jsonl", classify=True, train__max_steps=3, data__eval_fraction=0.3)
    done = fleetune("run", spec, "--set", "eval.metrics=[accuracy, f1, tests.support.own_metrics:share_of_first]")
    assert done.returncode == 0, done.stdout + done.stderr
    paths = newest_run(workshop)
    manifest = json.loads(pathlib.Path(paths.manifest).read_text())
    assert {"torch", "transformers", "deepspeed", "ray"} <= set(manifest["versions"])
    assert manifest["peak_memory_bytes"] > 1e8 and manifest["precision"] == "fp32" and manifest["data_fingerprint"]
    again = load_spec(paths.spec)
    assert again == load_spec(str(spec), ["eval.metrics=[accuracy, f1, tests.support.own_metrics:share_of_first]"])
    kinds = {event["kind"] for event in read_journal(paths.events)}
    assert {"phase", "plan", "evaluated", "exported", "ended"} <= kinds
    record = read_journal(paths.metrics)[-1]
    assert {
        "step", "epoch", "loss", "learning_rate", "grad_norm", "tokens", "tokens_per_s", "step_time_s", "data_wait_s",
        "max_memory_bytes", "eval_accuracy", "eval_f1", "eval_share_of_first",
    } <= set(record)  # fmt: skip
    assert 0.0 <= record["eval_share_of_first"] <= 1.0
    assert {"driver.log", "rank-0.log", "rank-1.log"} <= {path.name for path in pathlib.Path(paths.logs).iterdir()}
    for noise in ("Warning", "deprecated", "Traceback", "(pid=", "INFO"):
        assert noise not in done.stdout + done.stderr
    shown = fleetune("show", paths.root)
    assert shown.returncode == 0 and "succeeded" in shown.stdout
    listed = json.loads(fleetune("runs", "--storage", workshop / "runs", "--json").stdout)
    assert paths.name in {entry["name"] for entry in listed}


@pytest.mark.slow
def test_a_run_that_ray_began_goes_on_under_torchrun_and_saves_when_asked(
    write_spec: WriteSpec, workshop: pathlib.Path
) -> None:
    spec = write_spec(
        "gpt2", data__packing=False, train__global_batch_size=8, train__max_steps=160, train__max_grad_norm=0.5
    )
    before = runs_in(workshop)
    with started(spec) as process:
        seen, saved_once = "", False
        assert process.stdout is not None
        for line in process.stdout:
            seen += line
            if "/160" in line and "step" in line and "checkpoint" not in line and not saved_once:
                saved_once = True
                (root,) = runs_in(workshop) - before
                assert fleetune("save", root).returncode == 0
            if "checkpoint of step" in line:
                assert fleetune("stop", root).returncode == 0
                break
        seen += process.communicate(timeout=120)[0]
    assert process.returncode == 130, seen
    paths = newest_run(workshop)
    saved, stopped = committed_steps(paths)
    assert 0 < saved < stopped < 160
    done = torchrun(3, "-m", "jobs.finetune", "--resume", paths.root)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"resumed from the checkpoint of step {stopped}, written by 2 workers" in done.stdout
    assert "were lost" not in done.stdout
    assert outcome_of(paths).status is Status.SUCCEEDED
    records = read_steps(paths)
    assert [record["step"] for record in records] == list(range(1, 161))
    split = Prepared.open(prepared_root(str(workshop / "runs"), json.loads(
        pathlib.Path(paths.manifest).read_text())["data_fingerprint"])).split("train")  # fmt: skip
    plan = step_plan(load_spec(paths.spec), split)
    assert from_hex(records[-1]["chain"]) == chain_of(plan, row_digests(split.index.sample_ids), 160)
