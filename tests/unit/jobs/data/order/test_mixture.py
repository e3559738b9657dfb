"""A mixture of sections is a pure function too: shares, limits and epochs of each section are kept, at any position."""

from __future__ import annotations

import hashlib
import time
import tracemalloc
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jobs.data.order.digest_chain import EMPTY_CHAIN, chain_of, extended, step_digest
from jobs.data.order.mixture import MixedSection, Mixture
from jobs.data.order.permutation import Rows, key, walk
from jobs.data.order.row_order import GROUP_STEPS, ShuffledRows, StepPlan, micro_batches
from tests.support.roworders import counts_of, rows_at, shares_of, used

SEEDS = st.integers(0, 2**63 - 1)
UNIT = 2**20  # shares are multiples of a unit's inverse
WEIGHTS = st.one_of(st.floats(0.01, 100, allow_subnormal=False), st.integers(1, 9), st.sampled_from([1e-3, 0.1]))
SECTIONS = st.lists(st.builds(MixedSection, st.integers(1, 700), WEIGHTS), min_size=1, max_size=5)
LIMITS = st.one_of(st.none(), st.floats(0.01, 5.0))
LIMITED = st.lists(st.builds(MixedSection, st.integers(1, 700), WEIGHTS, LIMITS), min_size=1, max_size=5)


def mixture_of(*sections: tuple[int, float] | tuple[int, float, float | None], seed: int = 1) -> Mixture:
    return Mixture(tuple(MixedSection(*section) for section in sections), 64, seed)


def plan_of(mixture: Mixture, per_step: int, total_rows: int, grouped: bool = False) -> StepPlan:
    lengths = (np.arange(mixture.all_rows) * 7919 % 300 + 1).astype(np.int32) if grouped else None
    return StepPlan(mixture, per_step, -(-total_rows // per_step), total_rows, lengths)


def sha256(rows: Rows) -> str:
    return hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()[:16]


def end_of(mixture: Mixture, wanted: int) -> int:
    end = mixture.num_positions
    return wanted if end is None else min(wanted, end)


def cycle_of(weights: list[float]) -> int:
    return 64 if len(weights) > 1 else 1


def one_by_one(mixture: Mixture, wanted: int) -> list[int]:
    """The first rows of a mixture as its description says, cycle by cycle and place by place, in whole numbers.

    For weights whose sum is a power of two in each phase.
    """
    sections, rows, phase = mixture.sections, list[int](), 0
    offsets = np.cumsum([0, *(section.rows for section in sections)]).tolist()
    used = [0] * len(sections)
    active = list(range(len(sections)))
    while active:
        weights = [int(sections[number].weight) for number in active]
        shares = [weight * UNIT // sum(weights) for weight in weights]
        cycle, number_of_cycle, came = cycle_of([float(weight) for weight in weights]), 0, len(rows)
        while True:
            bounds = [
                [(number * cycle * sum(shares[:place]) + UNIT // 2) // UNIT for place in range(len(active) + 1)]
                for number in (number_of_cycle, number_of_cycle + 1)
            ]
            ends = [after - before for before, after in zip(*bounds, strict=True)]
            full = [
                (limit := sections[number].max_uses) is not None and used[number] + high - low > limit
                for number, low, high in zip(active, ends, ends[1:], strict=False)
            ]
            if any(full):
                break
            with_key = np.array([[key(key(mixture.seed, 5, phase), number_of_cycle)]], dtype=np.uint64)
            for place in walk(np.arange(cycle)[None], cycle, with_key)[0].tolist() if len(active) > 1 else [0]:
                which = next(which for which, end in enumerate(ends[1:]) if place < end)
                order = ShuffledRows(
                    sections[active[which]].rows, mixture.rows_per_block, key(mixture.seed, 6, active[which])
                )
                use = used[active[which]] + place - ends[which]
                rows.append(offsets[active[which]] + rows_at(order, [use])[0])
            for number, low, high in zip(active, ends, ends[1:], strict=False):
                used[number] += high - low
            number_of_cycle += 1
            if len(rows) >= wanted:
                return rows[:wanted]
        active = [number for number, is_full in zip(active, full, strict=True) if not is_full]
        phase += len(rows) > came
    return rows


@pytest.mark.parametrize(
    "sections",
    [
        [(100, 1), (30, 2), (7, 5)], [(50, 3, None), (40, 1, 1.0), (9, 4, 9.5)], [(10, 1)],
        [(300, 1, 1.0), (30, 3, 4.0), (64, 4, 1.0)], [(20, 6, 0.5), (500, 1, 1.0), (90, 1, 2.3)],
    ],
)  # fmt: skip
def test_a_mixture_is_what_its_description_says(sections: list[tuple[int, float]]) -> None:
    mixture = mixture_of(*sections, seed=5)
    expected = one_by_one(mixture, 900)
    assert len(expected) == end_of(mixture, 900) > 100
    assert mixture.rows_between(0, len(expected)).tolist() == expected


def test_a_mixture_is_what_it_always_was() -> None:
    """On any machine and with any numpy, so that a run goes on with the same rows."""
    small = Mixture((MixedSection(10, 0.5), MixedSection(5, 0.3), MixedSection(3, 0.2, 4.0)), 4, 7)
    expected = [6, 12, 1, 5, 13, 4, 0, 6, 9, 1, 8, 2, 8, 11, 10, 12, 4, 6, 3, 11, 11, 2, 9, 14]
    assert small.rows_between(0, 24).tolist() == expected
    assert rows_at(small, [0, 63, 64, 10**12, 2**50 + 1]) == [6, 13, 11, 0, 0]
    tiny = mixture_of((70_001, 1.0), (3333, 0.1, 2.0), (500, 1e-5), seed=2**63 - 1)
    assert sha256(tiny.rows_between(1000, 400_000)) == "291fe21d9f50fb77"


@settings(max_examples=40, deadline=None)
@given(sections=LIMITED, seed=SEEDS, per_block=st.sampled_from([1, 3, 64]), data=st.data())
def test_positions_asked_for_singly_or_in_pieces_are_those_of_a_long_stretch(
    sections: list[MixedSection], seed: int, per_block: int, data: st.DataObject
) -> None:
    mixture = Mixture(tuple(sections), per_block, seed)
    stop = end_of(mixture, 3000)
    whole = mixture.rows_between(0, stop)
    assert len(whole) == stop
    wanted = np.array(data.draw(st.lists(st.integers(0, max(stop - 1, 0)), max_size=20 if stop else 0)), dtype=np.int64)
    assert rows_at(mixture, wanted) == whole[wanted].tolist()
    cuts = [0, *np.sort(wanted).tolist(), stop]
    pieces = [mixture.rows_between(low, high) for low, high in pairwise(cuts)]
    assert np.array_equal(np.concatenate(pieces), whole)
    assert len(mixture.rows_between(5, 5)) == 0


@pytest.mark.parametrize("sections", [[(900, 2), (70, 1)], [(5000, 1), (40, 1e-4)], [(9000, 1), (300, 1e-6), (9, 0.2)]])
def test_long_stretches_are_the_rows_of_single_positions(sections: list[tuple[int, float]]) -> None:
    """Longer than what is worked out at once."""
    mixture = mixture_of(*sections)
    for start in (0, 12_345, 2**43 + 99):
        stretch = mixture.rows_between(start, start + 1_200_000)
        some = np.arange(0, 1_200_000, 9973)
        assert rows_at(mixture, start + some) == stretch[some].tolist()
        assert list(shares_of(mixture, start, start + 1_200_000)) == counts_of(mixture, stretch)


@settings(max_examples=30, deadline=None)
@given(sections=SECTIONS, seed=SEEDS, cycles=st.integers(1, 9))
def test_a_section_goes_through_whole_permutations_of_its_rows(
    sections: list[MixedSection], seed: int, cycles: int
) -> None:
    mixture = Mixture(tuple(sections), 64, seed)
    stop = cycles * cycle_of([section.weight for section in sections])
    times = np.bincount(mixture.rows_between(0, stop), minlength=mixture.all_rows)
    parts = np.split(times, np.cumsum([section.rows for section in sections])[:-1])
    for section, part, uses in zip(sections, parts, used(mixture, stop), strict=True):
        assert len(part) == section.rows
        assert part.sum() == uses
        assert part.min() == uses // section.rows
        assert part.max() == -(-uses // section.rows)


@settings(max_examples=200, deadline=None)
@given(sections=SECTIONS, cycles=st.integers(0, 10**8))
def test_whole_cycles_have_the_asked_shares_to_within_two_rows(sections: list[MixedSection], cycles: int) -> None:
    stop = cycles * cycle_of([section.weight for section in sections])
    uses_of = used(Mixture(tuple(sections), 64, 1), stop)
    total = sum(Fraction(repr(float(section.weight))) for section in sections)
    assert sum(uses_of) == stop
    for section, uses in zip(sections, uses_of, strict=True):
        asked = stop * Fraction(repr(float(section.weight))) / total
        assert abs(uses - asked) <= 2 + Fraction(stop, UNIT)


@settings(max_examples=100, deadline=None)
@given(sections=SECTIONS, seed=SEEDS, start=st.integers(0, 10**12), size=st.integers(1, 5000))
def test_any_window_has_the_asked_shares_as_well_as_a_random_sample(
    sections: list[MixedSection], seed: int, start: int, size: int
) -> None:
    mixture = Mixture(tuple(sections), 64, seed)
    counts = counts_of(mixture, mixture.rows_between(start, start + size))
    assert tuple(counts) == shares_of(mixture, start, start + size)
    for section, count in zip(sections, counts, strict=True):
        share = section.weight / sum(section.weight for section in sections)
        assert abs(count - share * size) <= 3 + 6 * np.sqrt(size * share * (1 - share)) + size / UNIT


def test_a_tiny_weight_does_not_tear_the_reading_of_the_others_apart() -> None:
    rows = mixture_of((1_000_000, 0.7), (200_000, 0.3), (5000, 1e-5)).rows_between(0, 2048)
    assert len(np.unique(rows // 64)) <= 2 * 3 * 16


def test_cycles_of_the_shortest_length_are_mixed_in_many_ways() -> None:
    sections = mixture_of((500, 1), (500, 1)).rows_between(0, 64 * 4000).reshape(4000, 64) // 500
    assert np.all(sections.sum(axis=1) == 32)
    assert len(np.unique(sections, axis=0)) > 3950
    assert np.all(np.abs(sections.mean(axis=0) - 0.5) < 0.05)


@settings(max_examples=40, deadline=None)
@given(sections=LIMITED, seed=SEEDS)
@example(sections=[MixedSection(100, 1, 0.29), MixedSection(5, 1)], seed=1)  # in binary, 0.29 * 100 is below 29
def test_limits_are_kept_to_within_a_cycle(sections: list[MixedSection], seed: int) -> None:
    mixture = Mixture(tuple(sections), 64, seed)
    stop = end_of(mixture, 60_000)
    uses_of = used(mixture, stop)
    assert list(uses_of) == counts_of(mixture, mixture.rows_between(0, stop))
    for section, uses in zip(sections, uses_of, strict=True):
        if section.max_epochs is not None:
            allowed = int(Fraction(repr(section.max_epochs)) * section.rows)
            assert uses <= allowed
            if mixture.num_positions == stop:
                assert uses >= allowed - cycle_of([other.weight for other in sections])


def test_a_section_at_its_limit_drops_out_and_the_others_go_on_in_their_shares() -> None:
    mixture = mixture_of((1000, 6), (200, 3, 2.0), (5000, 1))
    assert mixture.num_positions is None
    assert 400 - 64 * 0.3 - 1 <= used(mixture, 10**6)[1] <= 400
    before, after = shares_of(mixture, 0, 1024), shares_of(mixture, 2048, 2048 + 700_000)
    assert np.allclose(before, [614.4, 307.2, 102.4], atol=12)
    assert after[1] == 0
    assert np.allclose(after[::2], [600_000, 100_000], atol=12)
    times = np.bincount(mixture.rows_between(0, 1_000_000), minlength=6200)
    for part in (times[:1000], times[1200:]):  # a row of two epochs may come in one cycle, so a difference of two
        assert part.max() - part.min() <= 2


def test_a_limit_of_a_number_of_epochs_that_a_cycle_divides_is_used_up() -> None:
    mixture = mixture_of((64, 1, 3.0), (500, 1))
    assert used(mixture, 384)[0] == 192 == used(mixture, 10**9)[0]
    times = np.bincount(mixture.rows_between(0, 5000))
    assert np.all(times[:64] == 3)


def test_a_mixture_of_limited_sections_ends() -> None:
    mixture = mixture_of((100, 1, 2.0), (50, 1, 1.0), (40, 2, 0.5))
    end = mixture.num_positions
    assert end is not None
    assert end == sum(used(mixture, end))
    assert used(mixture, end)[0] == 200  # the last one is alone, and is used to its end
    assert len(mixture.rows_between(0, end)) == end
    asks: list[Callable[[], object]] = [
        lambda: mixture.rows_between(end - 1, end + 1),
        lambda: plan_of(mixture, 8, end + 8).rows_of_steps(0, end // 8 + 1),
    ]
    for ask in asks:
        with pytest.raises(ValueError, match=rf"are not inside 0\.\.{end - 1} of the mixture"):
            ask()
    with pytest.raises(ValueError, match=r"positions -1\.\.0 are not inside"):
        mixture.rows_between(-1, 1)


def test_a_section_whose_limit_is_below_a_cycle_never_takes_part() -> None:
    mixture = mixture_of((1000, 1), (10, 1, 1.0), (10, 1, 0.01))
    assert mixture.left_out == (1, 2)
    assert used(mixture, 10_000) == (10_000, 0, 0)
    assert mixture_of((1000, 1), (40, 1, 1.0)).left_out == ()
    nothing = mixture_of((10, 1, 1.0), (10, 2, 1.0))
    assert nothing.left_out == (0, 1)
    assert nothing.num_positions == 0
    assert len(nothing.rows_between(0, 0)) == 0


def test_one_section_is_in_its_own_order() -> None:
    for weight in (1, 0.3, 1e-9, 10**6):
        mixture = mixture_of((100, weight, 3.21))
        assert mixture.num_rows == mixture.all_rows == 100
        assert mixture.num_positions == 321
        assert np.array_equal(mixture.rows_between(0, 321), ShuffledRows(100, 64, key(1, 6, 0)).rows_between(0, 321))


def test_an_epoch_is_a_pass_over_the_first_section() -> None:
    assert mixture_of((1000, 1), (10, 3)).num_rows == 4000
    assert mixture_of((1, 9), (10, 1)).num_rows == 1
    mixture = mixture_of((12_345, 0.17), (10_000, 0.8), (5, 0.03))
    assert mixture.all_rows == 22_350
    assert abs(used(mixture, mixture.num_rows)[0] - 12_345) <= 20


def test_tiny_weights_are_served() -> None:
    mixture = mixture_of((1000, 1), (300, 1e-5), (7, 1e-9))
    assert used(mixture, 10 * UNIT)[1:] == (100, 10)  # 10 and 1 of 2**20
    rows = mixture.rows_between(0, UNIT)
    assert len(np.unique(rows[(rows >= 1000) & (rows < 1300)])) == 10
    many = mixture_of(*[(2, 1e-9)] * 500, (9, 1), (9, 2))
    assert used(many, UNIT)[:500] == (1,) * 500
    assert sum(used(many, UNIT)) == UNIT


@settings(max_examples=20, deadline=None)
@given(sections=LIMITED, seed=SEEDS, rows=st.integers(1, 100), per_device=st.integers(1, 5), grouped=st.booleans())
def test_any_number_of_workers_deals_the_same_rows(
    sections: list[MixedSection], seed: int, rows: int, per_device: int, grouped: bool
) -> None:
    mixture = Mixture((*sections, MixedSection(50, 1)), 64, seed)
    whole = plan_of(mixture, rows, rows * 50 - rows // 2, grouped)
    for step in (0, 17, 49):
        expected = whole.rows_of_step(step)
        for workers in (1, 2, 3, 5):
            accumulation = -(-rows // (per_device * workers))
            own = plan_of(Mixture(mixture.sections, 64, seed), rows, rows * 50 - rows // 2, grouped)
            dealt = micro_batches(own.rows_of_step(step), per_device, accumulation, workers)
            by_number = [dealt[number % workers][number // workers] for number in range(accumulation * workers)]
            assert np.array_equal(np.concatenate(by_number), expected)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("sections", [[(1000, 1), (300, 0.2), (40, 0.05, 2.0)], [(700, 1, 2.0), (2000, 1, 1.0)]])
def test_the_chain_of_a_mixture_is_that_of_the_steps(
    sections: list[tuple[int, float, float | None]], grouped: bool
) -> None:
    mixture = mixture_of(*sections)
    plan = plan_of(mixture, 24, end_of(mixture, 4001), grouped)
    digests = np.random.default_rng(0).integers(0, 2**64, mixture.all_rows, dtype=np.uint64)
    chain = EMPTY_CHAIN
    for step in range(plan.total_steps):
        rows = plan.rows_of_step(step)
        chain = extended(chain, step_digest(digests[rows], np.arange(len(rows))))
    assert chain_of(plan, digests, plan.total_steps) == chain
    with pytest.raises(ValueError, match=rf"1 digests were given for {mixture.all_rows} rows"):
        chain_of(plan, digests[:1], 1)


def test_grouping_by_length_keeps_the_rows_of_each_group_and_saves_padding() -> None:
    mixture = mixture_of((3000, 1), (500, 0.5), (100, 0.1, 2.0))
    plain, grouped = plan_of(mixture, 16, 9600), plan_of(mixture, 16, 9600, grouped=True)
    lengths = grouped.lengths
    assert lengths is not None
    padding = {False: 0, True: 0}
    for first in range(0, mixture.num_rows // 16 - GROUP_STEPS, GROUP_STEPS):  # of the first epoch
        ours, theirs = (plan.rows_of_steps(first, first + GROUP_STEPS) for plan in (grouped, plain))
        assert not np.array_equal(ours, theirs)
        assert np.array_equal(np.sort(ours), np.sort(theirs))
        for is_grouped, rows in ((True, ours), (False, theirs)):
            of_steps = lengths[rows].reshape(-1, 16)
            padding[is_grouped] += int((of_steps.max(axis=1, keepdims=True) - of_steps).sum())
    assert 0 < padding[True] < padding[False] / 5


def test_seeds_and_sections_of_a_mixture_differ() -> None:
    first, second = (mixture_of((4096, 1), (4096, 1), seed=seed).rows_between(0, 8192) for seed in (1, 2))
    assert np.mean(first == second) < 0.01
    assert np.mean((first < 4096) == (second < 4096)) < 0.55
    assert np.mean(first[first < 4096][:4000] == first[first >= 4096][:4000] - 4096) < 0.01


def test_a_position_far_into_a_mixture_is_found_at_once() -> None:
    """In about a millisecond on a core that has nothing else to do."""
    for mixture in (mixture_of((10**9, 0.7), (10**6, 0.2), (999, 0.1, 5e6)), mixture_of((10**6, 1), (999, 1e-5, 1e4))):
        started = time.thread_time()
        for start in range(10**12, 10**12 + 5000, 100):
            assert mixture.rows_between(start, start + 100)[0] == mixture.rows_between(start, start + 1)[0]
        assert time.thread_time() - started < 1.0


def test_ten_million_rows_are_mixed_quickly_and_in_bounded_memory() -> None:
    """In less than a second on a core that has nothing else to do."""
    mixture = mixture_of((1_000_000, 0.7), (200_000, 0.2), (50_000, 0.1))

    def took_s() -> float:
        started = time.thread_time()
        assert len(mixture.rows_between(0, 10_000_000)) == 10_000_000
        return time.thread_time() - started

    assert any(took_s() < 4.0 for _ in range(3))
    for weight in (0.1, 1e-6):
        mixture = mixture_of((1_000_000, 0.7), (50_000, weight))
        tracemalloc.start()
        result = mixture.rows_between(0, 2_500_000)
        assert tracemalloc.get_traced_memory()[1] - result.nbytes < 80_000_000
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("section", "match"),
    [
        ((0, 1), "needs rows, this one has 0"),
        ((5, 0), "weight of a section must be a number above 0, not 0"),
        ((5, float("nan")), "weight of a section must be"),
        ((5, float("inf")), "weight of a section must be"),
        ((5, 1, 0.0), r"max_epochs of a section must be a number above 0, not 0\.0"),
    ],
)
def test_sections_that_cannot_be_mixed_are_refused(section: tuple[int, float], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        mixture_of(section)
    with pytest.raises(ValueError, match="a mixture has 1 to 16384 sections, not 0"):
        Mixture((), 64, 1)


def test_a_limit_that_no_run_reaches_is_none() -> None:
    limited, free = (mixture_of((9_000_000, 1, epochs), (5, 3)) for epochs in (1e6, None))
    assert limited.num_positions is None
    assert np.array_equal(limited.rows_between(0, 10_000), free.rows_between(0, 10_000))
