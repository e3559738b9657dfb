"""What a comparison's end says and means after searches of its methods have failed."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from cluster.errors import Diverged, FleetuneError, InputError, MachinesFailed, RunFailed
from jobs.compare import failure_of
from jobs.run.outcome import Outcome, Status


def failed(reason: str, **facts: Any) -> Outcome:
    at = datetime.datetime(2026, 12, 2, tzinfo=datetime.UTC)
    return Outcome(status=Status.FAILED, reason=reason, ended_at=at, **facts)


@pytest.mark.parametrize(
    ("lora", "kind"),
    [
        (failed("no file", bad_input=True), InputError),
        (failed("loss is nan", diverged=True), RunFailed),
        (failed("node gone", lost=True), MachinesFailed),
    ],
)
def test_the_error_of_a_comparison_follows_from_all_its_failures(lora: Outcome, kind: type[FleetuneError]) -> None:
    both = failure_of({"full": failed("no file", bad_input=True), "lora": lora}, methods=2)
    assert type(both) is kind and str(both) == f"full: no file; lora: {lora.reason}"


def test_a_failed_method_beside_one_that_succeeded_is_no_bad_input() -> None:
    assert type(failure_of({"full": failed("no file", bad_input=True)}, methods=2)) is RunFailed
    assert type(failure_of({"full": failed("nan", diverged=True)}, methods=1)) is Diverged
