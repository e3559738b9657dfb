"""A run on several sources with weights: the shares that were asked for, in one order on any number of workers."""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest

from cluster.errors import SpecError
from jobs.data.order.digest_chain import EMPTY_CHAIN, extended, from_hex, row_digests, step_digest
from jobs.data.order.mixture import Mixture
from jobs.data.order.stream import step_plan
from tests.integration.jobs.training.test_resume import workers
from tests.support import tiny
from tests.support.gangs import Case, case_of, run_gang
from tests.support.roworders import shares_of, used

STOP, STEPS = 9, 30
WEIGHTS = (0.7, 0.25, 0.05)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Three sources; the second is used up after one pass, in the middle of the run."""
    folder = tmp_path_factory.mktemp("mixed")
    tiny.save_model(folder / "gpt2", "gpt2", dropout=0.1)
    for number in range(3):
        tiny.write_text(folder / f"{number}.jsonl", (300, 40, 80)[number], seed=number)
    sources = [
        {"path": str(folder / f"{number}.jsonl"), "weight": weight, "max_epochs": 1 if number == 1 else None}
        for number, weight in enumerate(WEIGHTS)
    ]
    return tiny.spec_of(
        folder, folder / "gpt2", folder / "0.jsonl", data__train=sources, data__packing=False, train__max_steps=STEPS,
        train__global_batch_size=8, train__per_device_train_batch_size=2, train__max_grad_norm=0.5,
    )  # fmt: skip


@pytest.fixture(scope="module")
def cases(spec: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    folder = tmp_path_factory.mktemp("runs")
    undisturbed, stopped = case_of(folder, "undisturbed", spec), case_of(folder, "stopped", spec, STOP)
    run_gang(folder, 2, [undisturbed, stopped])
    found = {"undisturbed": undisturbed}
    for number in (1, 3):
        name = f"on {number}"
        shutil.copytree(stopped.paths.root, folder / name)
        found[name] = dataclasses.replace(stopped, name=name, stop_at=None, spec=workers(spec, number))
        run_gang(folder, number, [found[name]])
    return found


@pytest.mark.slow
def test_a_mixed_run_that_goes_on_elsewhere_is_the_undisturbed_one(cases: dict[str, Case]) -> None:
    """The order of several sources with weights does not depend on the number of workers, nor on an interruption."""
    undisturbed = cases["undisturbed"]
    assert len(undisturbed.record("loss")) == STEPS
    for name in ("on 1", "on 3"):
        assert cases[name].record("chain") == undisturbed.record("chain")
        assert cases[name].record("loss") == pytest.approx(undisturbed.record("loss"), abs=1e-4)


@pytest.mark.slow
def test_the_workers_had_the_rows_of_the_mixture(cases: dict[str, Case]) -> None:
    case = cases["undisturbed"]
    split = case.prepared.split("train")
    plan, digests = step_plan(case.spec, split), row_digests(split.index.sample_ids)
    chain, rows = EMPTY_CHAIN, []
    for step in range(STEPS):
        rows.append(plan.rows_of_step(step))
        chain = extended(chain, step_digest(digests[rows[-1]], np.arange(len(rows[-1]))))
    assert from_hex(case.record("chain")[-1]) == chain
    owners = np.searchsorted(np.cumsum(split.rows_of_sources), np.concatenate(rows), side="right")
    assert isinstance(plan.order, Mixture)
    counts = tuple(np.bincount(owners, minlength=3).tolist())
    assert counts == used(plan.order, STEPS * 8) and 24 < counts[1] <= 40  # one pass, but for less than a cycle's share
    early = np.searchsorted(np.cumsum(split.rows_of_sources), plan.order.rows_between(0, 128), side="right")
    assert np.bincount(early, minlength=3) / 128 == pytest.approx(WEIGHTS, abs=2.5 / 128)


def test_shares_do_not_depend_on_what_is_prepared_first(spec: Any, tmp_path: pathlib.Path) -> None:
    split = case_of(tmp_path, "x", spec).prepared.split("train")
    plan = step_plan(spec, split)
    assert isinstance(plan.order, Mixture) and plan.order.all_rows == len(split) == 420
    assert shares_of(plan.order, 0, 64)[0] == pytest.approx(0.7 * 64, abs=2)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (
            (0.5, 0.6, 0.5),
            r"the run needs 240 rows, but the max_epochs of all sources in data\.train allow \d+. Remove",
        ),
        ((None, 0.1, None), r"data\.train\[1\] .*1\.jsonl\): max_epochs 0\.1 of 40 rows is less than its weight"),
    ],
)
def test_limits_that_cannot_be_met_are_refused_before_workers_start(
    spec: Any, tmp_path: pathlib.Path, limits: tuple[float | None, ...], message: str
) -> None:
    sources = [
        source.model_copy(update={"max_epochs": limit, "weight": 1.0})
        for source, limit in zip(spec.data.train, limits, strict=True)
    ]
    changed = spec.model_copy(update={"data": spec.data.model_copy(update={"train": tuple(sources)})})
    with pytest.raises(SpecError, match=message):
        step_plan(changed, case_of(tmp_path, "x", changed).prepared.split("train"))
