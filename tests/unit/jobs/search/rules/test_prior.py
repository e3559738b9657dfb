"""The rate with which a search begins. For full fine-tuning, test_auto.py shows it."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.search.rules.prior import PROMPT_RATE, rate_by_size, with_prior
from tests.unit.jobs.search.rules.test_auto import base_of, sweep_with
from tests.unit.jobs.spec.test_sweep import BASE


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
