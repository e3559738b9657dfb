"""Sweeps on a real Ray: every trial is a run, and whatever is killed, the search ends as an undisturbed one."""

from __future__ import annotations

import json
import pathlib
import subprocess
from typing import Any

import pytest

from jobs.run.paths import JobPaths
from jobs.run.record import read_steps
from jobs.search.rules.rates import best_rate
from jobs.spec.load import load_spec
from jobs.storage.journal import read_journal
from tests.acceptance.conftest import BEGINS_WITHIN_S, FLEETUNE, environment, fleetune, workers_of
from tests.support import tiny
from tests.support.gangs import case_of, run_gang, torchrun
from tests.support.hold import Hold
from tests.support.memorylimit import kill_by_signal
from tests.support.processes import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

STEPS, TRIALS = 12, 6
LAST_CHANGE = "changed (budget.trials +1)"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Its file: four learning rates to their half, then a whole run at the rate that they lead to, then another warmup.

    The model's head is new.
    """
    folder = tmp_path_factory.mktemp("sweep")
    tiny.save_model(folder / "encoder", "encoder")
    tiny.write_labelled(folder / "rows.jsonl", 120, 3)
    base = {
        "model": {"path": "encoder", "task": "sequence-classification", "num_labels": 3},
        "data": {"train": "rows.jsonl", "format": "classification", "eval_fraction": 0.2, "seq_len": 32},
        "train": {"learning_rate": 1e-3, "max_steps": STEPS, "global_batch_size": 8, "per_device_train_batch_size": 4},
        "checkpoint": {"save_steps": 2},
        "resources": {"num_workers": 2, "gpus_per_worker": 0},
        "storage_path": "runs",
    }
    (folder / "base.json").write_text(json.dumps(base))
    found = {
        "kind": "sweep",
        "name": "found",
        "base": "base.json",
        "space": {"learning_rate": {"min": 1e-4, "max": 3e-2, "log": True}, "warmup_ratio": {"min": 0.0, "max": 0.2}},
        "budget": {"trials": TRIALS},
        "prior": {"learning_rate": 1e-3},  # else what one of these sweeps finds would be where the next one begins
        "rungs": [0.5],
    }
    (folder / "sweep.json").write_text(json.dumps(found))
    return folder / "sweep.json"


def sweeps_in(sweep: pathlib.Path) -> list[pathlib.Path]:
    return sorted((sweep.parent / "runs").glob("found-2*"))


def answers_of(root: pathlib.Path) -> dict[int, list[dict[str, Any]]]:
    """What gangs have answered, by trial."""
    found: dict[int, list[dict[str, Any]]] = {}
    for record in read_journal(str(root / "ledger")):
        if "answer" in record and record["answer"]["status"] != "stopped":
            found.setdefault(record["trial"], []).append(record["answer"])
    return found


def known_of(root: pathlib.Path) -> dict[int, Any]:
    """Of each trial: its values, the steps at which it was scored and the scores, and how its run ended."""
    values = {record["trial"]: record["values"] for record in read_journal(str(root / "ledger")) if "values" in record}
    return {
        trial: (
            values[trial],
            [(answer["step"], (answer["cooled"] or answer["metrics"])["eval_loss"]) for answer in answers],
            json.loads((root / f"{trial:04d}/outcome.json").read_text())["status"],
        )
        for trial, answers in sorted(answers_of(root).items())
    }


@pytest.fixture(scope="module")
def undisturbed(sweep: pathlib.Path) -> tuple[pathlib.Path, str]:
    """The directory of a sweep in one go, and what it printed."""
    done = fleetune("run", sweep)
    assert done.returncode == 0, done.stdout + done.stderr
    (root,) = sweeps_in(sweep)
    return root, done.stdout


def test_it_halves_exports_the_best_and_says_so(undisturbed: tuple[pathlib.Path, str]) -> None:
    """The rule for rates holds on real trainings. The time is that of the sweep that the others of the file are
    compared with.
    """
    root, output = undisturbed
    known = known_of(root)
    rates = {trial: values["learning_rate"] for trial, (values, _, _) in known.items()}
    at_rung = {trial: scores[0][1] for trial, (_, scores, _) in known.items() if scores[0][0] == STEPS // 2}
    ends = {trial: scores[-1][1] for trial, (_, scores, _) in known.items() if scores[-1][0] == STEPS}
    assert sorted(at_rung) == [1, 2, 3, 4] and len(ends) == 2
    assert [rates[1], rates[2]] == pytest.approx([1e-3, 3e-3])
    target = best_rate({rates[trial]: score for trial, score in at_rung.items()}) * 0.5**0.32
    first, second = sorted(ends)
    assert max(rates[first] / target, target / rates[first]) < 1.15 and rates[second] == rates[first]
    assert [values["warmup_ratio"] == 0.06 for values, _, _ in known.values()] == [True] * (len(known) - 1) + [False]
    best = min(ends, key=lambda trial: ends[trial])
    assert (root / f"{best:04d}/model/config.json").exists()
    assert "the best so far" in output and f"model: {root}/{best:04d}/model" in output
    assert "Traceback" not in output and "Warning" not in output
    assert len((root / "optuna.journal").read_text().splitlines()) > TRIALS


def test_its_best_spec_runs_as_it_is_and_gives_the_best_trials_losses(undisturbed: tuple[pathlib.Path, str]) -> None:
    root, output = undisturbed
    best = pathlib.Path(output.rpartition("model: ")[2].strip()).parent
    done = torchrun(2, "-m", "jobs.finetune", str(root / "best.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    (again,) = root.parent.glob(f"found-{best.name}-2*")
    for same in ("loss", "learning_rate", "chain"):
        losses = [[record[same] for record in read_steps(JobPaths(str(run)))] for run in (best, again)]
        assert losses[0] == losses[1] and len(losses[0]) == STEPS


def test_a_worker_and_the_driver_are_killed_and_it_ends_as_the_undisturbed_one(
    sweep: pathlib.Path, undisturbed: tuple[pathlib.Path, str]
) -> None:
    """The search and the scores of all trials are the same, though a gang was replaced and the sweep was resumed."""
    log, hold = sweep.parent / "disturbed.log", Hold(sweep.parent)
    hold.at(3, "/0002", "/0003")
    with open(log, "w") as file:
        command = [str(FLEETUNE), "run", str(sweep)]
        driver = subprocess.Popen(command, env=environment(**hold.environment), stdout=file, stderr=file)
    try:
        wait_for(lambda: len(sweeps_in(sweep)) == 2, "it has begun", BEGINS_WITHIN_S)
        root = sweeps_in(sweep)[-1]

        def is_at(trial: int, step: int) -> bool:
            assert driver.poll() is None, log.read_text()
            return any(record["step"] >= step for record in read_steps(JobPaths(str(root / f"{trial:04d}"))))

        wait_for(lambda: is_at(2, 3), "trial 2 is trained", BEGINS_WITHIN_S)
        worker = workers_of(driver)[1]  # type: ignore[arg-type]  # of bytes or of text
        again = "starting the workers of the gang again"
        kill_by_signal(worker, lambda: wait_for(lambda: again in log.read_text(), "it is replaced", BEGINS_WITHIN_S))
        hold.at(3, "/0003")
        wait_for(lambda: is_at(3, 3), "trial 3 is trained", BEGINS_WITHIN_S)
    finally:
        driver.kill()
        driver.wait()
    done = fleetune("run", "--resume", root)
    assert done.returncode == 0, done.stdout + done.stderr
    assert known_of(root) == known_of(undisturbed[0])


@pytest.fixture(scope="module")
def extended(undisturbed: tuple[pathlib.Path, str]) -> tuple[dict[int, Any], str]:
    """What was known of the trials before that sweep got a larger budget, and what it printed then.

    While it searches it is given one trial more and a narrower space; last, the best values are trained once more on
    all samples.
    """
    root, _ = undisturbed
    before, log, hold = known_of(root), root.parent.parent / "extended.log", Hold(root.parent.parent)
    added = f"{len(before) + 1:04d}"
    hold.at(2, f"/{added}")
    with open(log, "w") as file:
        settings = ("--set", f"budget.trials={TRIALS + 1}", "--set", "then=final")
        command = [str(FLEETUNE), "run", "--resume", str(root), *settings]
        driver = subprocess.Popen(command, env=environment(**hold.environment), stdout=file, stderr=file)
    try:
        trial = JobPaths(str(root / added))
        wait_for(
            lambda: driver.poll() is not None or len(read_steps(trial)) > 1, "another trial is trained", BEGINS_WITHIN_S
        )
        narrower = ("--set", "learning_rate.min=2e-4", "--set", "space.learning_rate.max=2e-3")
        for change in (("narrow", root, *narrower), ("extend", root, "--trials", "1")):
            asked = fleetune("sweep", *change)
            assert asked.returncode == 0 and "asked the sweep for " in asked.stdout, asked.stderr
        refused = fleetune("sweep", "narrow", root, "--set", "learning_rate.max=1e-5")
        assert refused.returncode == 2 and "must be less than max" in refused.stderr
        wait_for(lambda: driver.poll() is not None or LAST_CHANGE in log.read_text(), "it has taken both changes")
        hold.release()
        assert driver.wait(BEGINS_WITHIN_S) == 0, log.read_text()
    finally:
        driver.kill()
    return before, log.read_text()


def test_with_a_larger_budget_it_goes_on_and_takes_changes_on_the_way(
    undisturbed: tuple[pathlib.Path, str], extended: tuple[dict[int, Any], str]
) -> None:
    """What was tried outside of a narrower range stays known, and nothing outside of it is tried again."""
    (root, _), (before, output) = undisturbed, extended
    after = known_of(root)
    assert {trial: after[trial] for trial in before} == before and len(after) == len(before) + 2
    assert 2e-4 <= after[max(after)][0]["learning_rate"] <= 2e-3
    assert f"{LAST_CHANGE}: searching learning_rate 0.0002..0.002 (log)" in output
    assert "Traceback" not in output and "looking for the greatest" not in output


def test_the_final_run_takes_all_samples_and_gives_the_losses_of_a_plain_run_of_its_spec(
    undisturbed: tuple[pathlib.Path, str], extended: tuple[dict[int, Any], str], tmp_path: pathlib.Path
) -> None:
    (root, _), (_, output) = undisturbed, extended
    assert ": 120 train rows of" in output and f"model: {root}/final/model" in output
    spec, best = (json.loads((root / name).read_text()) for name in ("final/spec.json", "best.json"))
    assert spec["train"] == best["train"]
    assert (root / "final/model/config.json").exists()
    plain = case_of(tmp_path, "plain", load_spec(str(root / "final/spec.json")))
    run_gang(tmp_path, 2, [plain])
    final = read_steps(JobPaths(str(root / "final")))
    for same in ("loss", "learning_rate", "chain"):
        assert [record[same] for record in final] == plain.record(same) and len(final) == STEPS
