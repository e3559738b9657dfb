"""What ZeRO holds for gradients during a backward pass."""

from __future__ import annotations

import pytest

from jobs.planning.gradients import Gradients
from jobs.planning.precision import Precision
from jobs.planning.strategy import Strategy

SIZES = (100, 100, 40)


def gradients(
    stage: int, precision: Precision = "fp32", workers: int = 2, bucket: int = 150, accumulates: bool = False
) -> Gradients:
    strategy = Strategy(stage=stage, reduce_bucket_size=bucket, accumulates=accumulates)  # type: ignore[arg-type]
    return Gradients(SIZES, (True, True, False), strategy, workers, precision)


def test_a_full_bucket_is_reduced_through_a_copy() -> None:
    held = gradients(3)
    assert [held.add(number) for number in (2, 1, 0)] == [0, 0, 140 * 4]
    assert held.held == held.buckets == 0  # ZeRO-3 has its bucket and its part of the gradients all the time


@pytest.mark.parametrize(("stage", "workers", "copies"), [(3, 2, 2), (3, 1, 1), (2, 2, 1)])
def test_gloo_reduces_and_scatters_in_one_more_copy(stage: int, workers: int, copies: int) -> None:
    held = gradients(stage, workers=workers)
    held.gloo = True
    assert [held.add(number) for number in (2, 1, 0)] == [0, 0, copies * 140 * 4]


def test_a_gradient_larger_than_the_bucket_stays_until_its_reduction() -> None:
    held = gradients(3, bucket=50)
    assert held.add(0) == 0 and held.held == 400
    assert held.add(1) == 0  # one gradient that divides evenly needs no copy
    assert held.held == 400


def test_zero_2_has_two_buckets_and_makes_room_for_its_part_at_the_first_reduction() -> None:
    held = gradients(2)
    held.add(2)
    assert (held.buckets, held.held) == (2 * 150 * 4, 0)
    held.add(1)
    held.add(0)
    assert held.held == 4 * (100 + 40)  # one matrix and the vector, which both workers own in part


@pytest.mark.parametrize(
    ("stage", "precision", "kept"),
    [
        (1, "fp32", 960),
        (1, "bf16", 480),
        (2, "fp32", 560),
        (2, "bf16", 480),
        (3, "fp32", 0),
    ],
)
def test_earlier_passes_of_a_step_leave_whole_gradients_in_zero_1_and_a_part_in_zero_2(
    stage: int, precision: Precision, kept: int
) -> None:
    assert gradients(stage, precision, accumulates=True).held == kept


def test_zero_1_moves_whole_gradients_into_the_buckets() -> None:
    held = gradients(1, accumulates=True)
    held.add(2)
    assert held.held == 960 - 160


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("bucket", "copies"), [(1000, (4 + 2) * 240), (150, 2 * 200)])
def test_zero_1_in_bf16_reduces_the_sums_of_a_bucket_of_groups_in_copies(
    monkeypatch: pytest.MonkeyPatch, workers: int, bucket: int, copies: int
) -> None:
    """A group that is larger than the engine's bucket is reduced alone, without a copy in fp32."""
    monkeypatch.setattr("jobs.planning.gradients._ENGINE_BUCKET", bucket)
    assert gradients(1, "bf16", workers).end() == copies
    assert gradients(1, "fp32", workers).end() == gradients(2, "bf16", workers).end() == 0


def test_what_is_left_in_the_bucket_is_reduced_at_the_end() -> None:
    held = gradients(3, "bf16")
    held.gloo = True
    for number in (2, 1, 0):
        held.add(number)
    assert held.end() == 100 * (2 + 4 // 2)  # a copy of gloo, and this worker's part in fp32
    assert held.held == held.end() == 0


@pytest.mark.parametrize(
    ("stage", "precision", "gloo", "copies"),
    [
        # A bucket of two gradients, of which the larger has 100 elements: 140 in one piece, then the largest in fp64.
        (3, "fp32", True, 140 * 4 + max(140 * 4, 8 * 50)),  # gloo's copy is gone before
        (3, "fp32", False, 140 * 4 + 8 * 50 + 4 * 50),  # the sum is brought back from the host
        (3, "bf16", False, 4 * 70 + 8 * 50 + 4 * 50),  # the bucket's part is cast, and the piece is gone
        (2, "fp32", False, 140 * 4 + 8 * 100),
        (2, "bf16", False, 140 * 2 + 8 * 100),
    ],
)
def test_an_offloaded_optimizer_needs_each_gradient_in_fp64_for_its_norm(
    stage: int, precision: Precision, gloo: bool, copies: int
) -> None:
    strategy = Strategy(stage=stage, reduce_bucket_size=150, offload_optimizer=True)  # type: ignore[arg-type]
    held = Gradients(SIZES, (True, True, False), strategy, 2, precision, gloo)
    assert [held.add(number) for number in (2, 1, 0)] == [0, 0, copies]


@pytest.mark.parametrize(
    ("precision", "offload", "gloo", "copies"),
    [
        # A bucket of two sums, of which the larger has 100 elements: what is sent, then the larger of all in one piece
        # and of one sum in fp32; or then the fp64 copy for the norm, beside what gloo has not released yet.
        ("fp16", False, False, 140 * 2 + 140 * 4),
        ("fp16", True, False, max(140 * 2 + 140 * 4, 8 * 100)),
        ("bf16", True, True, 140 * 2 + 8 * 100),
    ],
)
def test_zero_1_in_fp16_and_with_offload_sums_each_gradient_and_sends_it_in_half_precision(
    precision: Precision, offload: bool, gloo: bool, copies: int
) -> None:
    strategy = Strategy(stage=1, reduce_bucket_size=150, offload_optimizer=offload, accumulates=True)
    held = Gradients(SIZES, (True, True, False), strategy, 2, precision, gloo)
    assert (held.held, held.buckets) == (4 * 240, 2 * 150 * 4)
    part = 4 * 120  # made before the first collective
    assert [held.add(number) for number in (2, 1, 0)] == [4 * 40, 4 * 100, 4 * 100 + part + copies]
    assert held.held == part, "the sums are in the bucket, or in this worker's part"
    assert held.at_update == part and held.norm_at_update == 8 * 100


def test_the_part_in_half_precision_is_made_before_the_first_collective() -> None:
    copies = {accumulates: gradients(2, "bf16", 1, 50, accumulates) for accumulates in (False, True)}
    for held in copies.values():
        held.add(0)
    cast = 4 * 100
    assert [copies[accumulates].add(1) for accumulates in (False, True)] == [cast + 4 * 240, cast]


@pytest.mark.parametrize(("workers", "kept"), [(1, 0), (2, 400)])
def test_in_zero_1_a_large_gradient_of_another_workers_part_stays_until_the_update(workers: int, kept: int) -> None:
    held = gradients(1, "fp32", workers, bucket=50)
    held.add(0)
    before = held.held
    held.add(2)
    assert (before, held.held) == (400, kept + 4 * held.own)


def test_with_offload_a_large_sum_is_cloned_before_its_reduction() -> None:
    strategy = Strategy(stage=1, reduce_bucket_size=50, offload_optimizer=True, accumulates=False)
    held = Gradients(SIZES, (True, True, False), strategy, 2, "bf16")
    assert held.add(0) == 6 * 100


def test_sums_of_an_offloaded_optimizer_in_fp32_are_on_the_host() -> None:
    def held(precision: Precision, gloo: bool) -> int:
        strategy = Strategy(stage=2, reduce_bucket_size=150, offload_optimizer=True)
        return Gradients(SIZES, (True, True, False), strategy, 2, precision, gloo).held

    assert (held("fp32", gloo=False), held("bf16", gloo=False), held("fp32", gloo=True)) == (0, 480, 560)
    strategy = Strategy(stage=1, reduce_bucket_size=150, offload_optimizer=True)
    whole = Gradients(SIZES, (True, True, False), strategy, 2, "fp32")
    assert whole.held == 960, "ZeRO-1 sums whole gradients on the GPU, and reduces them once"
    assert [whole.held for number in (2, 1, 0) if whole.add(number) >= 0] == [800, 400, 0]
