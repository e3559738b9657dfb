"""The same run under Ray and under torchrun."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from jobs.data.order.digest_chain import chain_of, from_hex, row_digests
from jobs.data.order.stream import step_plan
from jobs.data.prepared import Prepared
from jobs.run.checkpoints import committed_steps
from jobs.run.outcome import Status
from jobs.run.paths import JobPaths, prepared_root
from jobs.run.record import read_steps
from jobs.spec.load import dump_spec, load_spec
from jobs.storage.journal import read_journal
from tests.acceptance.conftest import fleetune, newest_run, outcome_of, runs_in, started
from tests.support import tiny
from tests.support.gangs import torchrun
from tests.support.hold import Hold

WriteSpec = Callable[..., pathlib.Path]


def losses(root: str) -> list[float]:
    return [record["loss"] for record in read_journal(f"{root}/metrics")]


METRICS = ["accuracy", "perplexity", "exact_match", "tests.support.own_metrics:share_right"]
SCORED_BY = f"eval.metrics=[{', '.join(METRICS)}]"


@dataclass(frozen=True)
class Ran:
    """A run under Ray that was not disturbed, and what it printed."""

    spec: pathlib.Path
    paths: JobPaths
    output: str


@pytest.fixture(scope="module")
def under_ray(workshop: pathlib.Path) -> Ran:
    """With accumulation, a batch that does not divide, and dropout."""
    spec = workshop / "under-ray.json"
    spec.write_bytes(dump_spec(tiny.spec_of(
        workshop / "runs", workshop / "gpt2", workshop / "text.jsonl", train__per_device_train_batch_size=1,
        train__global_batch_size=7, train__max_steps=8, data__eval_fraction=0.2, eval__eval_steps=5,
    )))  # fmt: skip
    done = fleetune("run", spec, "--set", SCORED_BY)
    assert done.returncode == 0, done.stdout + done.stderr
    return Ran(spec, newest_run(workshop), done.stdout + done.stderr)


def test_under_ray_and_under_torchrun_the_losses_are_the_same(under_ray: Ran, workshop: pathlib.Path) -> None:
    """With accumulation, a batch that does not divide, and dropout: to the last digit."""
    done = torchrun(2, "-m", "jobs.finetune", str(under_ray.spec), "--set", SCORED_BY)
    assert done.returncode == 0, done.stdout + done.stderr
    under_torchrun = newest_run(workshop)
    assert under_ray.paths != under_torchrun
    assert len(losses(under_torchrun.root)) == 8
    assert losses(under_ray.paths.root) == losses(under_torchrun.root)
    ray_outcome, other_outcome = outcome_of(under_ray.paths), outcome_of(under_torchrun)
    assert ray_outcome.metrics == pytest.approx(other_outcome.metrics)
    assert ray_outcome.metrics_before == pytest.approx(other_outcome.metrics_before)
    scores = {"eval_loss", "eval_accuracy", "eval_perplexity", "eval_exact_match", "eval_share_right"}
    assert {*scores, "loss"} == set(ray_outcome.metrics)
    assert ray_outcome.metrics["eval_share_right"] == pytest.approx(ray_outcome.metrics["eval_accuracy"])


def test_a_run_leaves_all_that_is_needed_to_understand_and_repeat_it(under_ray: Ran, workshop: pathlib.Path) -> None:
    """Its spec as it was changed, versions, events, metrics, logs; it is shown and listed, and prints nothing else."""
    paths = under_ray.paths
    manifest = json.loads(pathlib.Path(paths.manifest).read_text())
    assert {"torch", "transformers", "deepspeed", "ray"} <= set(manifest["versions"])
    assert manifest["peak_memory_bytes"] > 1e8 and manifest["precision"] == "fp32" and manifest["data_fingerprint"]
    assert load_spec(paths.spec) == load_spec(str(under_ray.spec), [SCORED_BY]) != load_spec(str(under_ray.spec))
    kinds = {event["kind"] for event in read_journal(paths.events)}
    assert {"phase", "plan", "evaluated", "exported", "ended"} <= kinds
    record = read_journal(paths.metrics)[-1]
    assert {
        "step", "epoch", "loss", "learning_rate", "grad_norm", "tokens", "tokens_per_s", "step_time_s", "data_wait_s",
        "max_memory_bytes", "eval_accuracy", "eval_exact_match", "eval_share_right",
    } <= set(record)  # fmt: skip
    assert {"driver.log", "rank-0.log", "rank-1.log"} <= {path.name for path in pathlib.Path(paths.logs).iterdir()}
    for noise in ("Warning", "deprecated", "Traceback", "(pid=", "INFO"):
        assert noise not in under_ray.output
    shown = fleetune("show", paths.root)
    assert shown.returncode == 0 and "succeeded" in shown.stdout
    listed = json.loads(fleetune("runs", "--storage", workshop / "runs", "--json").stdout)
    assert paths.name in {entry["name"] for entry in listed}


STEPS, EPOCH = 20, 8


@pytest.mark.slow
def test_a_run_that_ray_began_goes_on_under_torchrun_and_saves_when_asked(
    write_spec: WriteSpec, workshop: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """Over the ends of two epochs."""
    tiny.write_text(workshop / "epoch.jsonl", EPOCH * 8)
    spec = write_spec(
        "gpt2", "epoch.jsonl", data__packing=False, train__global_batch_size=8, train__per_device_train_batch_size=2,
        train__max_steps=STEPS, train__max_grad_norm=0.5,
    )  # fmt: skip
    before, hold = runs_in(workshop), Hold(tmp_path)
    hold.at(4)  # each request ends it for a step
    with started(spec, **hold.environment) as process:
        seen, saved_once = "", False
        assert process.stdout is not None
        for line in process.stdout:
            seen += line
            if f"/{STEPS}" in line and "step" in line and "checkpoint" not in line and not saved_once:
                saved_once = True
                (root,) = runs_in(workshop) - before
                assert fleetune("save", root).returncode == 0
            if "checkpoint of step" in line:
                assert fleetune("stop", root).returncode == 0
                break
        seen += process.communicate(timeout=300)[0]
    assert process.returncode == 130, seen
    paths = newest_run(workshop)
    saved, stopped = committed_steps(paths)
    assert 0 < saved < stopped < STEPS
    done = torchrun(1, "-m", "jobs.finetune", "--resume", paths.root)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"resumed from the checkpoint of step {stopped}, written by 2 workers" in done.stdout
    assert "were lost" not in done.stdout
    assert outcome_of(paths).status is Status.SUCCEEDED
    records = read_steps(paths)
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    split = Prepared.open(prepared_root(str(workshop / "runs"), json.loads(
        pathlib.Path(paths.manifest).read_text())["data_fingerprint"])).split("train")  # fmt: skip
    plan = step_plan(load_spec(paths.spec), split)
    assert from_hex(records[-1]["chain"]) == chain_of(plan, row_digests(split.index.sample_ids), STEPS)
