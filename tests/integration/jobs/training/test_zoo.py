"""A sample of the architectures that `bench.zoo` tries, in one warm gang: trained, resumed and exported."""

from __future__ import annotations

import pytest

from bench.zoo.__main__ import run
from bench.zoo.cases import all_cases
from bench.zoo.trial import Result

# Each stands for a mechanism: a head at the end of a text, a configuration of several parts, parameters that are not
# trained, experts of which ranks choose different ones, a recurrent state, weights that are not sharded while they are
# loaded, no sdpa, fused experts, positions that are not counted from 0.
SAMPLE = (
    "bart-cls", "gemma3-lm", "hrm_text-lm", "longcat_flash-lm", "mamba-lm", "marian-lm", "mpnet-cls", "qwen3_moe-lm",
    "qwen4_exp_text-lm", "roberta-lm", "xlm-roberta-lm", "youtu-lm",
)  # fmt: skip
APART = {"mamba-lm", "marian-lm", "qwen4_exp_text-lm", "roberta-lm", "xlm-roberta-lm"}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    cases = {(case.model_type, case.task): case for case in all_cases() if case.name in SAMPLE}
    found = run(list(cases.values()), tmp_path_factory.mktemp("zoo"), jobs=2)
    return {cases[result.model_type, result.task].name: result for result in found}


@pytest.mark.parametrize("name", SAMPLE)
def test_a_model_trains_with_nothing_but_defaults(results: dict[str, Result], name: str) -> None:
    """One architecture for each mechanism that models differ in; also resumed and exported."""
    result = results[name]
    assert (result.outcome, result.reason, result.keys) == ("trains", None, True)
    assert result.packed is (None if name.endswith("-cls") else name not in APART)
