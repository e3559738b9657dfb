"""What is wrong with a submission is told in one message that a person can read, however much is wrong."""

from __future__ import annotations

import pytest

from cluster.errors import CapacityError, InputError, Mistake, SpecError
from orchestrator.queue.errors import QueueError, UnknownTenant
from orchestrator.service.admission.admit import Problems

WRONG = (Mistake("is missing", "name"), Mistake("is missing", "data"))


def told(problems: Problems) -> InputError:
    with pytest.raises(InputError) as raised:
        problems.check()
    return raised.value


def test_nothing_wrong_raises_nothing() -> None:
    Problems(3).check()


def test_one_spec_needs_no_number_and_several_kinds_are_a_queue_error() -> None:
    one, two = Problems(1), Problems(2)
    one.add(1, SpecError.of(WRONG))
    assert str(told(one)) == "name: is missing\ndata: is missing" and type(told(one)) is SpecError
    two.add(1, SpecError.of(WRONG))
    two.add(2, CapacityError("there are 4 GPUs"))
    assert str(told(two)).splitlines() == [
        "spec 1: name: is missing",
        "spec 1: data: is missing",
        "spec 2: there are 4 GPUs",
    ]
    assert type(told(two)) is QueueError


@pytest.mark.parametrize("long", [10, 900, 100_000])
@pytest.mark.parametrize("lines", [1, 30, 3_000])
def test_ten_thousand_wrong_specs_are_a_message_of_bounded_length(lines: int, long: int) -> None:
    problems = Problems(10_000)
    for number in range(1, 10_001 if lines == 1 else 4):
        problems.add(number, SpecError.of([Mistake("x" * long)] * lines))
    message = str(told(problems))
    assert message.startswith("spec 1: xxx") and len(message) < 9_000
    last = message.splitlines()[-1]
    whole = (10_000 if lines == 1 else 3) * lines
    assert last == f"and {whole - len(message.splitlines()) + 1:,} more"


def test_a_tenant_that_is_not_there_is_told_with_some_that_are() -> None:
    def said(name: str, *known: str) -> str:
        return str(UnknownTenant.among(name, known))

    assert said("visoin", "default", "vision") == "there is no tenant 'visoin'; did you mean vision?"
    assert said("x", "vision") == "there is no tenant 'x': there is vision"
    assert said("x", "b", "a") == "there is no tenant 'x': there are a, b"
    assert said("x", *"abcdefg").endswith("there are a, b, c, d, e and more")
    assert said("x").endswith(": fleetune tenants set NAME creates one")
