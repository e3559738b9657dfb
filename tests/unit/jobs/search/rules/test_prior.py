"""The rate with which a search begins. For full fine-tuning, test_auto.py shows it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import SpecError
from jobs.run.record import open_run
from jobs.search.ledger import Ledger
from jobs.search.rules.checking import check_same_search, check_sweep, checked_sweep, stored_sweep, with_stored_values
from jobs.search.rules.prior import PROMPT_RATE, rate_by_size, with_prior
from jobs.spec.load import dump_spec, spec_of
from jobs.spec.sweep import SweepSpec
from jobs.training.mailbox import Answer
from tests.unit.jobs.search.rules.test_auto import RATE, WARMUP, base_of, sweep_with
from tests.unit.jobs.spec.test_sweep import BASE, sweep_of


def test_lora_begins_with_ten_times_the_rate_of_full_fine_tuning(tmp_path: Path) -> None:
    base = {**base_of(tmp_path), "method": "lora"}
    sweep, source = with_prior(sweep_with(tmp_path, base=base))
    assert sweep.prior["learning_rate"] == pytest.approx(10 * rate_by_size(500), rel=0.02)
    assert source == "the model's width of 500"


def test_where_the_width_is_not_known_lora_begins_with_ten_times_the_default(tmp_path: Path) -> None:
    base = {**base_of(tmp_path), "method": "lora", "model": {**BASE["model"], "path": "organisation/model"}}
    sweep, source = with_prior(sweep_with(tmp_path, base=base))
    assert sweep.prior["learning_rate"] == pytest.approx(2e-4) and source == "ten times the default"


def test_prompts_begin_where_their_rates_usually_are_unless_the_base_has_one(tmp_path: Path) -> None:
    sweep, source = with_prior(sweep_with(tmp_path, base={**base_of(tmp_path), "method": "prompt"}))
    assert sweep.prior["learning_rate"] == PROMPT_RATE and source == "what is usual for prompts"
    given = {**base_of(tmp_path, learning_rate=0.1), "method": "prompt"}
    sweep, source = with_prior(sweep_with(tmp_path, base=given))
    assert sweep.prior["learning_rate"] == 0.1 and source == "the base"


@pytest.mark.parametrize("check", [check_sweep, checked_sweep])
def test_a_prior_is_refused_if_the_algorithm_does_not_begin_there(tmp_path: Path, check: Callable[..., object]) -> None:
    sweep = sweep_of(tmp_path, BASE, algorithm="tpe", prior={"learning_rate": 1e-4})
    with pytest.raises(SpecError) as caught:
        check(sweep)
    assert str(caught.value) == "prior: it is for algorithm: auto, but algorithm is tpe: leave prior out"
    check(sweep_of(tmp_path, BASE, algorithm="tpe"))


def test_a_sweep_of_an_earlier_release_with_such_a_prior_goes_on_without_it(tmp_path: Path) -> None:
    paths = open_run(sweep_of(tmp_path, BASE, algorithm="tpe", prior={"learning_rate": 1e-4}))
    given = sweep_of(tmp_path, BASE, algorithm="tpe")
    for by_hand in (True, False):
        sweep = with_stored_values(given, paths, by_hand=by_hand)
        check_sweep(sweep)
        check_same_search(stored_sweep(paths), sweep)


def test_a_resume_with_another_algorithm_does_not_get_the_stored_prior(tmp_path: Path) -> None:
    paths = open_run(with_prior(sweep_of(tmp_path, BASE, algorithm="auto"))[0])
    assert not with_stored_values(sweep_of(tmp_path, BASE, algorithm="tpe"), paths).prior


def earlier_sweep(
    sweep: SweepSpec, number: int, rate: float, loss: float = 0.5, space: str = RATE, **changed: Any
) -> None:
    """Write the directory of an earlier sweep that has gone from a loss of 0.7 to `loss` with this best rate."""
    root = Path(sweep.base.storage_path) / f"earlier-20261127-00000{number}-abcd"
    root.mkdir(parents=True)
    train = sweep.base.train.model_copy(update={"learning_rate": rate})
    base = sweep.base.model_copy(update={"train": train, **changed})
    spec = sweep.model_copy(update={"base": base, "space": {space: (rate / 2, rate)}})
    (root / "spec.json").write_bytes(dump_spec(spec))
    (root / "best.json").write_bytes(dump_spec(base))
    ledger = Ledger(spec, str(root), lambda _: 10, 100.0)
    answer = Answer(status="finished", step=10, base={"eval_loss": 0.7}, metrics={"eval_loss": loss})
    ledger.answered(ledger.add({space: rate}), answer)
    ledger.close()


def test_or_from_earlier_sweeps_of_the_same_model(tmp_path: Path) -> None:
    sweep = sweep_with(tmp_path)
    model, method = sweep.base.model, sweep.base.method
    earlier_sweep(sweep, 0, 1e-4)
    earlier_sweep(sweep, 1, 4e-4)
    earlier_sweep(sweep, 2, 9e-2, model=model.model_copy(update={"path": "/other/model"}))
    earlier_sweep(sweep, 3, 9e-2, method=method.model_copy(update={"kind": "lora"}))
    earlier_sweep(sweep, 4, 9e-2, space=WARMUP)
    earlier_sweep(sweep, 5, 2.7e-8, loss=0.699)  # it has learned nothing
    found, source = with_prior(sweep)
    assert found.prior[RATE] == pytest.approx(2e-4) and source == "2 earlier sweeps of this model"


def test_an_earlier_rate_outside_the_space_does_not_count(tmp_path: Path) -> None:
    space = {"learning_rate": {"min": 1e-5, "max": 1e-2, "log": True}}
    sweep = sweep_with(tmp_path, space=space)
    earlier_sweep(sweep, 0, 2.7e-8)
    found, source = with_prior(sweep)
    assert found.prior == {"learning_rate": rate_by_size(500)} and source == "the model's width of 500"
    earlier_sweep(sweep, 1, 3e-4)
    found, source = with_prior(sweep)
    assert found.prior["learning_rate"] == pytest.approx(3e-4) and source == "an earlier sweep of this model"


def test_a_rate_that_the_base_gives_comes_before_those_of_earlier_sweeps(tmp_path: Path) -> None:
    sweep = sweep_with(tmp_path, base=base_of(tmp_path, learning_rate=5e-5))
    earlier_sweep(sweep, 0, 3e-4)
    found, source = with_prior(sweep)
    assert found.prior[RATE] == 5e-5 and source == "the base"
    queued = spec_of(json.loads(dump_spec(sweep_with(tmp_path))))
    assert isinstance(queued, SweepSpec)
    found, source = with_prior(queued)
    assert found.prior[RATE] == pytest.approx(3e-4) and source == "an earlier sweep of this model", "it gives none"
