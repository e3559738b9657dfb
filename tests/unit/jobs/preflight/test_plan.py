"""What a plan does not know, it refuses."""

from __future__ import annotations

import pytest

from jobs.errors import SpecError
from jobs.preflight.plan import plan_job
from jobs.spec.finetune import Spec


def test_a_method_that_a_plan_does_not_know_is_refused() -> None:
    model, data = {"path": "/m", "task": "causal-lm"}, {"train": "/d", "format": "text"}
    spec = Spec.model_validate({"model": model, "data": data, "method": "prompt"})
    with pytest.raises(SpecError, match="method: plans for method: prompt are not supported yet"):
        plan_job(spec)
