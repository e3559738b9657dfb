"""When a rank is slower than the others, and what is said of it."""

from __future__ import annotations

import math

import pytest

from jobs.remedies.straggler import (
    ENOUGH,
    FAULTY_AFTER,
    Cause,
    Place,
    Slow,
    Timing,
    is_machine_at_fault,
    report_of,
    slow_ranks,
)

NORMAL = Timing(0.030, 0.030)


def timings(*host_s: float, core_share: float = 1.0) -> list[Timing]:
    return [Timing(seconds, seconds * core_share) for seconds in host_s]


def test_a_rank_is_slow_if_it_is_so_in_all_of_the_newest_speed_tests() -> None:
    slow = timings(0.03, 0.06, 0.031)
    assert slow_ranks([slow] * (ENOUGH - 1)) == []
    (one,) = slow_ranks([slow] * ENOUGH)
    assert one == Slow(1, one.times, Cause.PROCESSOR, core_share=1.0) and one.times == pytest.approx(60 / 31)
    assert slow_ranks([*[slow] * ENOUGH, timings(0.03, 0.044, 0.03)]) == []  # now below the limit


def test_other_ranks_in_turn_are_noise() -> None:
    assert slow_ranks([timings(0.03, 0.06), timings(0.06, 0.03)] * ENOUGH) == []


def test_a_whole_node_may_be_slow_but_not_most_of_the_gang() -> None:
    half = timings(*[0.03] * 8, *[0.05] * 8)
    assert [one.rank for one in slow_ranks([half] * ENOUGH)] == list(range(8, 16))
    assert slow_ranks([timings(0.03, 0.06, 0.06)] * ENOUGH) == []


def test_one_of_two_ranks_is_compared_with_the_faster_one() -> None:
    assert [one.rank for one in slow_ranks([timings(0.09, 0.03)] * ENOUGH)] == [0]


def test_a_gpu_is_blamed_only_if_its_host_is_not_slow() -> None:
    (one,) = slow_ranks([[Timing(0.03, 0.03, 0.002), Timing(0.03, 0.03, 0.005)]] * ENOUGH)
    assert one == Slow(1, one.times, Cause.GPU, core_share=1.0) and one.times == pytest.approx(2.5)
    late = [Timing(0.03, 0.03, 0.002), Timing(0.09, 0.03, 0.005)]
    assert [one.cause for one in slow_ranks([late] * ENOUGH)] == [Cause.CORES]
    old_processor = [Timing(0.03, 0.03, 0.002), Timing(0.09, 0.09, 0.002)]
    assert slow_ranks([old_processor] * ENOUGH) == []


def test_threads_of_the_worker_and_programs_of_others_are_told_apart() -> None:
    for own_s, cause in ((0.06, Cause.THREADS), (0.0, Cause.CORES)):
        (one,) = slow_ranks([[NORMAL, Timing(0.09, 0.03, own_s=own_s)]] * ENOUGH)
        assert one.cause is cause
    assert Cause.THREADS not in FAULTY_AFTER, "a job's own threads do not make a machine faulty"


def test_a_processor_is_at_fault_only_if_the_same_model_is_faster_elsewhere() -> None:
    slow = [Slow(1, 2.0, Cause.PROCESSOR, core_share=1.0), Slow(2, 2.0, Cause.PROCESSOR, core_share=1.0)]
    for models, faulty in (("AAB", True), ("BAA", False), (["", "", ""], False)):
        places = [Place(f"n{rank}", f"h{rank}", model) for rank, model in enumerate(models)]
        assert is_machine_at_fault(slow[0], slow, places) is faulty, models
    assert is_machine_at_fault(Slow(1, 2.0, Cause.CORES, core_share=0.5), [], places)


def test_a_speed_test_that_failed_proves_nothing() -> None:
    failed = [Timing(math.nan, math.nan), Timing(0.09, 0.09)]
    assert slow_ranks([*[timings(0.03, 0.09)] * 4, failed]) == []
    without_memory = [Timing(0.03, 0.03, math.nan), Timing(0.03, 0.03, 0.9)]
    assert slow_ranks([without_memory] * ENOUGH) == []


def test_what_is_said_depends_on_the_cause() -> None:
    (shared,) = slow_ranks([[NORMAL, Timing(0.09, 0.03)]] * ENOUGH)
    report = report_of([shared], "n2")
    assert report.cause.startswith("rank 1 on host n2 computes 3.0 times slower than the usual rank")
    assert "has one for 33% of the time" in report.cause and "nothing is changed" in report.action
    (throttled,) = slow_ranks([[NORMAL, Timing(0.09, 0.09), NORMAL]] * ENOUGH)
    report = report_of([throttled], "n2")
    assert "the processor is slow" in report.cause and "nothing is changed" in report.action


def test_ranks_of_one_host_are_named_together() -> None:
    slow = [Slow(rank, 1.5 + rank / 10, Cause.GPU, core_share=1.0) for rank in (4, 5, 6)]
    report = report_of(slow, "n2")
    assert report.message.startswith("ranks 4, 5, 6 on host n2 compute 2.1 times slower")
    assert "the GPU is slow" in report.message and "named as faulty" in report.action and "nvidia-smi" in str(report)
