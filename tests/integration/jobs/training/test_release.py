"""Which parameters ZeRO-3 releases after a module, compared with DeepSpeed's own decision."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from jobs.training.model.engine import import_deepspeed
from jobs.training.model.release import PRIVATE, decide_release_at_once

CALLS = 60


class Called(torch.nn.Module):
    """A module with what DeepSpeed adds to it."""

    visits = 0
    _z3_leaf: bool = False

    def __init__(self, number: int, parameters: list[torch.nn.Parameter]) -> None:
        super().__init__()
        self.ds_id = number
        for place, one in enumerate(parameters):
            self.register_parameter(f"p{place}", one)

    def ds_external_parameters(self) -> list[Any]:
        Called.visits += 1
        return []


def parameter(number: int, elements: int) -> Any:
    made: Any = torch.nn.Parameter(torch.zeros(1))
    made.ds_id, made.ds_numel, made.ds_persist = number, elements, number % 5 == 0
    return made


def coordinator_of(order: tuple[Called, ...], distance: int, fetched_for: dict[Any, int]) -> Any:
    """DeepSpeed's coordinator after it has recorded an order."""
    import_deepspeed(torch.device("cpu"))
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator, ZeRoTraceMode

    made: Any = PartitionedParameterCoordinator(0, distance, 10**9, None, {})
    setattr(made, f"{PRIVATE}trace_mode", ZeRoTraceMode.COMPLETE)
    setattr(made, f"{PRIVATE}submodule_order", order)
    getattr(made, f"{PRIVATE}most_recent_step_id_param_fetched_for").update(fetched_for)
    return made


@pytest.mark.parametrize(("distance", "is_leaf"), [*itertools.product((0, 1, 700, 10**9), (False,)), (700, True)])
def test_what_is_released_is_what_deepspeed_releases_and_calls_are_visited_once(distance: int, is_leaf: bool) -> None:
    """A parameter may belong to several modules, and a module may be called several times."""
    some = random.Random(3)
    parameters = [parameter(number, some.randint(0, 200)) for number in range(20)]
    modules = [Called(number, some.sample(parameters, some.randint(0, 3))) for number in range(24)]
    modules[0]._z3_leaf = is_leaf
    order = tuple(some.choices(modules, k=CALLS))
    fetched_for = {one: some.randint(0, CALLS) for one in parameters[::3]}
    theirs, ours = (coordinator_of(order, distance, fetched_for) for _ in range(2))
    decide_release_at_once(ours)
    for again in range(2):
        Called.visits = 0
        found = [getattr(ours, f"{PRIVATE}params_to_release")(one, call) for call, one in enumerate(order)]
        visits = Called.visits
        expected = [getattr(theirs, f"{PRIVATE}params_to_release")(one, call) for call, one in enumerate(order)]
        assert found == expected
        assert is_leaf or visits == (0 if again else 2 * CALLS)
        found[0].add(-1)  # as DeepSpeed does for a layer that is computed again


def test_a_new_order_is_decided_anew() -> None:
    one, other = parameter(1, 10), parameter(2, 10)
    first, second = Called(1, [one]), Called(2, [other])
    ours = coordinator_of((first, second, first), 10**9, {})
    decide_release_at_once(ours)
    release = getattr(ours, f"{PRIVATE}params_to_release")
    assert (release(first, 1), release(second, 2)) == (set(), {2})
    setattr(ours, f"{PRIVATE}submodule_order", (first, second, second))
    assert (release(first, 1), release(second, 2)) == ({1}, set())


@pytest.mark.parametrize(("distance", "keeps"), [(21, False), (22, True)])
def test_an_evaluation_before_any_training_keeps_a_small_model_for_its_next_batch(distance: int, keeps: bool) -> None:
    """Each parameter is used once in a batch of two modules. A step of training keeps both with these distances too."""
    modules = [Called(number, [parameter(number, 10)]) for number in (1, 2)]
    ours = coordinator_of((), distance, {})
    decide_release_at_once(ours)
    recorded_by(ours, modules)
    assert released(ours, modules, evaluates=True) == ([set(), set()] if keeps else [{1}, {2}])


@pytest.mark.parametrize(("distance", "kept"), [(21, set()), (22, {1})])
def test_an_evaluation_after_training_keeps_what_the_backward_pass_does_not_use(distance: int, kept: set[int]) -> None:
    """As the frozen embeddings of LoRA. Each step of training still releases them."""
    frozen, trained = (Called(number, [parameter(number, 10)]) for number in (1, 2))
    ours = coordinator_of((), distance, {})
    decide_release_at_once(ours)
    recorded_by(ours, [frozen, trained], backward=[trained])
    for _ in range(2):
        assert released(ours, [frozen, trained], evaluates=False) == [{1}, set()]
        assert released(ours, [frozen, trained], evaluates=True) == [{1} - kept, set()]


def test_an_order_with_a_backward_pass_ends_with_it() -> None:
    """The optimizer changes the weights then, so that none may stay whole."""
    module = Called(1, [parameter(1, 10)])
    ours = coordinator_of((), 10**9, {})
    decide_release_at_once(ours)
    recorded_by(ours, [module], backward=[module])
    assert released(ours, [module, module], evaluates=False) == [set(), {1}]


def released(coordinator: Any, modules: list[Called], *, evaluates: bool) -> list[set[int]]:
    """Return the parameters that a pass releases after each of the modules."""
    with torch.set_grad_enabled(not evaluates):
        coordinator.reset_step()
        release = getattr(coordinator, f"{PRIVATE}params_to_release")
        return [release(one, call) for call, one in enumerate(modules, 1)]


def recorded_by(coordinator: Any, modules: list[Called], backward: Sequence[Called] = ()) -> None:
    """Let the coordinator record a pass: modules in the forward pass, then others in the backward pass."""
    from deepspeed.runtime.zero.partitioned_param_coordinator import ZeRoTraceMode

    class InBackward(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
            return value.clone()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            for one in backward:
                coordinator.record_module(one)
            return gradient

    order = f"{PRIVATE}submodule_order"
    setattr(coordinator, f"{PRIVATE}trace_mode", ZeRoTraceMode.RECORD)
    setattr(coordinator, order, [])
    for one in modules:
        coordinator.record_module(one)
    InBackward.apply(torch.ones(1, requires_grad=True)).backward()  # type: ignore[no-untyped-call]
    setattr(coordinator, order, tuple(getattr(coordinator, order)))
    setattr(coordinator, f"{PRIVATE}trace_mode", ZeRoTraceMode.COMPLETE)
