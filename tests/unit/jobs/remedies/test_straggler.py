"""When a rank is slower than the others, and what is said of it."""

from __future__ import annotations

import math

import pytest

from jobs.remedies.straggler import ENOUGH, Slow, Timing, report_of, slow_ranks

NORMAL = Timing(0.030, 0.030)


def probe(*host_s: float, core_share: float = 1.0) -> list[Timing]:
    return [Timing(seconds, seconds * core_share) for seconds in host_s]


def test_a_rank_is_slow_if_it_is_so_in_all_of_the_newest_probes() -> None:
    slow = probe(0.03, 0.06, 0.031)
    assert slow_ranks([slow] * (ENOUGH - 1)) == []
    (one,) = slow_ranks([slow] * ENOUGH)
    assert one == Slow(1, one.times, on_gpu=False, core_share=1.0) and one.times == pytest.approx(60 / 31)
    assert slow_ranks([*[slow] * ENOUGH, probe(0.03, 0.044, 0.03)]) == []  # now below the limit


def test_other_ranks_in_turn_are_noise() -> None:
    assert slow_ranks([probe(0.03, 0.06), probe(0.06, 0.03)] * ENOUGH) == []


def test_a_whole_node_may_be_slow_but_not_most_of_the_gang() -> None:
    half = probe(*[0.03] * 8, *[0.05] * 8)
    assert [one.rank for one in slow_ranks([half] * ENOUGH)] == list(range(8, 16))
    assert slow_ranks([probe(0.03, 0.06, 0.06)] * ENOUGH) == []


def test_one_of_two_ranks_is_compared_with_the_faster_one() -> None:
    assert [one.rank for one in slow_ranks([probe(0.09, 0.03)] * ENOUGH)] == [0]


def test_a_slow_gpu_is_told_from_a_slow_host() -> None:
    gpus = [Timing(0.03, 0.03, 0.002), Timing(0.03, 0.03, 0.005)]
    (one,) = slow_ranks([gpus] * ENOUGH)
    assert one == Slow(1, one.times, on_gpu=True, core_share=1.0) and one.times == pytest.approx(2.5)
    both = [Timing(0.03, 0.03, 0.002), Timing(0.09, 0.03, 0.005)]
    assert [one.on_gpu for one in slow_ranks([both] * ENOUGH)] == [True]


def test_a_probe_that_failed_proves_nothing() -> None:
    failed = [Timing(math.nan, math.nan), Timing(0.09, 0.09)]
    assert slow_ranks([*[probe(0.03, 0.09)] * 4, failed]) == []
    without_memory = [Timing(0.03, 0.03, math.nan), Timing(0.03, 0.03, 0.9)]
    assert slow_ranks([without_memory] * ENOUGH) == []


def test_other_programs_on_the_host_are_not_blamed_on_its_hardware() -> None:
    shared = slow_ranks([[NORMAL, Timing(0.09, 0.03)]] * ENOUGH)
    assert [one.lacks_a_core for one in shared] == [True]
    report = report_of(shared, "n2", told=False)
    assert report.cause.startswith("rank 1 on host n2 computes 3.0 times slower than the usual rank")
    assert "has one for 33% of the time" in report.cause and "the machine is not at fault" in report.action
    throttled = slow_ranks([[NORMAL, Timing(0.09, 0.09), NORMAL]] * ENOUGH)
    assert [one.lacks_a_core for one in throttled] == [False]
    report = report_of(throttled, "n2", told=True)
    assert "the processor itself is slow" in report.cause and report.action == "the node is named as faulty"


def test_ranks_of_one_host_are_named_together() -> None:
    slow = [Slow(rank, 1.5 + rank / 10, on_gpu=True, core_share=1.0) for rank in (4, 5, 6)]
    said = report_of(slow, "n2", told=True).message
    assert said.startswith("ranks 4, 5, 6 on host n2 compute 2.1 times slower") and "the GPU itself is slow" in said
