"""How many programs of `ray job submit` may be queued at once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from orchestrator.queue.records import client_of
from orchestrator.service.ray_submitted import TooManyGuests, check_room
from tests.support.service import ServiceWorld, finetune


@pytest.fixture
def world() -> Iterator[ServiceWorld]:
    """At most two programs may be queued, and two jobs are there."""
    with contextlib.closing(ServiceWorld(1, most_ray_submitted=2)) as made:
        for name in ("raysubmit_a", "raysubmit_b"):
            made.admit(finetune(name), client=client_of(name, "0" * 16))
        yield made


def test_programs_that_ray_does_not_know_keep_nobody_out(world: ServiceWorld) -> None:
    third = client_of("raysubmit_c", "0" * 16)
    check_room(world.context, third)
    world.backend.run_elsewhere("raysubmit_a")
    world.backend.run_elsewhere("raysubmit_of_others")
    check_room(world.context, third)
    world.backend.run_elsewhere("raysubmit_b")
    with pytest.raises(TooManyGuests, match="at most 2 programs"):
        check_room(world.context, third)
    check_room(world.context, client_of("raysubmit_b", "0" * 16))  # it asks again
    with pytest.raises(TooManyGuests):
        check_room(world.context, client_of("raysubmit_b", "1" * 16))
    world.backend.end_elsewhere("raysubmit_a")
    check_room(world.context, third)


def test_all_programs_count_while_ray_does_not_answer(world: ServiceWorld) -> None:
    with world.backend.unreachable(), pytest.raises(TooManyGuests):
        check_room(world.context, client_of("raysubmit_c", "0" * 16))
