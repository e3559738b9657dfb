"""Tests how much of a step is memory that a process touches for the first time."""

from __future__ import annotations

import mmap
import resource

import pytest

from jobs.training.step_clock import StepClock, Usage, first_touch_s

_PAGE = resource.getpagesize()


@pytest.mark.parametrize(
    ("kernel_s", "faults", "gained_pages", "expected_s"),
    [
        pytest.param(4.0, 400_000, 400_000, 4.0, id="all touched pages are kept"),
        pytest.param(4.0, 400_000, 100_000, 1.0, id="three of four pages are returned"),
        pytest.param(4.0, 400_000, 0, 0.0, id="memory is touched and returned"),
        pytest.param(4.0, 400_000, -500, 0.0, id="memory is returned"),
        pytest.param(4.0, 1_000, 400_000, 4.0, id="huge pages: one fault makes many"),
        pytest.param(0.5, 0, 0, 0.0, id="other work in the kernel"),
        pytest.param(0.5, 100, 100, 0.002, id="other work in the kernel, and a few pages"),
    ],
)
@pytest.mark.parametrize("threads", [1, 2])
def test_of_the_time_in_the_kernel_the_share_of_gained_pages_counts(
    kernel_s: float, faults: int, gained_pages: int, expected_s: float, threads: int
) -> None:
    before = Usage(kernel_s=1.0, faults=500, resident_bytes=1000 * _PAGE)
    after = Usage(kernel_s=1.0 + kernel_s, faults=500 + faults, resident_bytes=(1000 + gained_pages) * _PAGE)
    assert first_touch_s(before, after, threads) == pytest.approx(expected_s / threads)


def test_a_step_that_makes_the_process_larger_says_so_and_the_next_one_does_not() -> None:
    clock = StepClock(threads=1)
    with mmap.mmap(-1, 2**28) as memory:
        _touch(memory)
        took_s, first_s = clock.read()
        clock.start()
        _touch(memory)
        _, second_s = clock.read()
    assert 0 < first_s <= took_s
    assert second_s < 0.2 * first_s


def test_first_touches_never_take_longer_than_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    usages = iter([Usage(0.0, 0, 0), Usage(3600.0, 10**9, 10**9 * _PAGE)])
    monkeypatch.setattr(Usage, "now", lambda: next(usages))
    took_s, first_s = StepClock(threads=1).read()
    assert first_s == took_s


def _touch(memory: mmap.mmap) -> None:
    for place in range(0, len(memory), _PAGE):
        memory[place] = 1
