"""What `fleetune gc` decides, from values alone."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import InputError
from cluster.text import byte_size
from orchestrator.cli.options import duration_s, size_bytes
from orchestrator.gc.plan import plan_gc
from orchestrator.gc.values import Bounds, Found, GcPlan, Held, Leftover, PreparedFacts, RunFacts, ToRemove

DAY, NOW = 86_400.0, 1_000 * 86_400.0


def run(name: str, days: float, size: int = 100, checkpoints: int = 60, **more: object) -> RunFacts:
    at = NOW - days * DAY
    facts: dict[str, object] = {"status": "succeeded", "since_s": at, "touched_s": at, "prepared": frozenset("d")}
    return RunFacts(name, size=size, checkpoint_size=checkpoints, **facts | more)  # type: ignore[arg-type]


def data(name: str, days: float, size: int = 10, **more: object) -> PreparedFacts:
    return PreparedFacts(name, NOW - days * DAY, size, **more)  # type: ignore[arg-type]


def gone(plan: GcPlan) -> dict[str, str]:
    """What goes, by name."""
    runs = {one.run.name: str(one.to_remove) for one in plan.runs if one.to_remove is not ToRemove.NOTHING}
    return {**runs, **{one.prepared.name: "prepared" for one in plan.prepared if one.to_remove}}


def why(plan: GcPlan, name: str) -> str:
    every = [(one.run.name, one.why) for one in plan.runs] + [(one.prepared.name, one.why) for one in plan.prepared]
    return dict(every)[name]


OLD = Bounds(older_than_s=30 * DAY)


def test_without_a_bound_nothing_goes() -> None:
    found = Found((run("a", 400),), (data("x", 400),), (Leftover("half", 5),))
    for bounds in (Bounds(), Bounds(keep_last=0, prepared=True, checkpoints_only=True)):
        plan = plan_gc(found, bounds, NOW)
        assert gone(plan) == {} and plan.leftovers == () and plan.freed == 0


def test_what_is_older_goes_wholly_and_the_rest_stays() -> None:
    plan = plan_gc(Found((run("new", 29), run("old", 31))), OLD, NOW)
    assert gone(plan) == {"old": "run"}
    assert (plan.size, plan.freed, plan.left) == (200, 100, 100)


def test_with_checkpoints_only_the_model_and_the_metrics_stay() -> None:
    found = Found((run("a", 31), run("bare", 31, checkpoints=0)))
    plan = plan_gc(found, dataclasses.replace(OLD, checkpoints_only=True), NOW)
    assert gone(plan) == {"a": "checkpoints"} and plan.freed == 60


@pytest.mark.parametrize(
    "alive",
    [
        run("a", 31, status="running"),
        run("a", 0.9, status="lost"),
        run("a", 31, status="unreadable"),
        run("a", 31, touched_s=NOW - DAY / 2),  # somebody goes on with it, or exports it
    ],
)
def test_what_may_be_alive_stays_however_small_the_rest_must_be(alive: RunFacts) -> None:
    plan = plan_gc(Found((alive,)), Bounds(older_than_s=0.0, most_size=0), NOW)
    assert gone(plan) == {} and why(plan, "a") and plan.over == 100


def test_a_run_that_has_been_silent_for_more_than_a_day_is_no_longer_alive() -> None:
    assert gone(plan_gc(Found((run("a", 1.1, status="lost"),)), Bounds(older_than_s=DAY), NOW)) == {"a": "run"}


def test_what_has_just_ended_may_go_where_the_bound_says_so() -> None:
    ended = run("a", 0.1, touched_s=NOW - 0.1 * DAY + 5)
    assert gone(plan_gc(Found((ended,)), Bounds(older_than_s=3600.0), NOW)) == {"a": "run"}


def test_what_the_queue_needs_stays_and_says_which_job() -> None:
    held = Held(wholly={"a": "job j-1 has not ended"}, models={"b": "job j-2 starts from it"})
    plan = plan_gc(Found((run("a", 31), run("b", 31), run("c", 31))), OLD, NOW, held)
    assert gone(plan) == {"b": "checkpoints", "c": "run"}
    assert why(plan, "a") == "job j-1 has not ended"


def test_the_model_that_a_living_run_starts_from_stays() -> None:
    child = run("child", 0.0, status="running", starts_from="parent")
    assert gone(plan_gc(Found((run("parent", 31), child)), OLD, NOW)) == {"parent": "checkpoints"}
    ended = run("child", 2.0, starts_from="parent")
    assert gone(plan_gc(Found((run("parent", 31), ended)), OLD, NOW)) == {"parent": "run"}


@pytest.mark.parametrize("bounds", [OLD, Bounds(most_size=0)])
def test_the_base_of_an_adapter_stays_as_long_as_the_adapter(bounds: Bounds) -> None:
    parent = run("parent", 40)
    for days, last, expected in ((2.0, 1, {"parent": "checkpoints"}), (31.0, 0, {"parent": "run", "child": "run"})):
        child = run("child", days, starts_from="parent", needs_base=True)
        plan = plan_gc(Found((parent, child)), dataclasses.replace(bounds, keep_last=last), NOW)
        assert gone(plan) == expected
        assert expected["parent"] == "run" or bounds is not OLD or why(plan, "parent").endswith("child starts from it")


def test_room_is_made_by_checkpoints_of_succeeded_runs_then_of_others_then_by_whole_runs() -> None:
    runs = (run("failed", 9, status="failed"), run("oldest", 8), run("newest", 7))
    order = [
        gone(plan_gc(Found(runs), Bounds(most_size=most), NOW)) for most in (300, 299, 239, 179, 119, 79, 39)
    ]  # fmt: skip
    assert order == [
        {},
        {"oldest": "checkpoints"},
        {"oldest": "checkpoints", "newest": "checkpoints"},
        {"oldest": "checkpoints", "newest": "checkpoints", "failed": "checkpoints"},
        {"oldest": "checkpoints", "newest": "checkpoints", "failed": "run"},
        {"oldest": "run", "newest": "checkpoints", "failed": "run"},
        {"oldest": "run", "newest": "run", "failed": "run"},
    ]


def test_both_bounds_count_each_by_itself() -> None:
    runs = (run("old", 31), run("big", 20, size=1000), run("new", 10))
    plan = plan_gc(Found(runs), Bounds(older_than_s=30 * DAY, most_size=1040), NOW)
    assert gone(plan) == {"old": "run", "big": "checkpoints"}


def test_the_last_ones_stay_as_they_are() -> None:
    runs = (run("a", 40), run("b", 39), run("c", 38))
    plan = plan_gc(Found(runs), dataclasses.replace(OLD, keep_last=2, most_size=0), NOW)
    assert gone(plan) == {"a": "run"} and why(plan, "c") == "one of the last 2"
    assert gone(plan_gc(Found(runs), dataclasses.replace(OLD, keep_last=5), NOW)) == {}


ALL = dataclasses.replace(OLD, prepared=True)


def test_prepared_data_goes_where_no_run_that_stays_uses_it_or_is_made_of_it() -> None:
    sets = (data("d", 90, sources=frozenset({"s", "t"})), data("s", 99), data("t", 99), data("u", 99), data("fresh", 5))
    kept = plan_gc(Found((run("a", 20),), sets), ALL, NOW)
    assert gone(kept) == {"u": "prepared"} and why(kept, "s") == "used by a"
    assert gone(plan_gc(Found((run("a", 31),), sets), ALL, NOW)) == {
        "a": "run", "d": "prepared", "s": "prepared", "t": "prepared", "u": "prepared",
    }  # fmt: skip


@pytest.mark.parametrize("ages", list(itertools.permutations((40, 50, 60))))
@pytest.mark.parametrize("bounds", [OLD, Bounds(most_size=0)])
def test_a_chain_of_runs_goes_at_once_whichever_of_them_ended_last(ages: tuple[int, ...], bounds: Bounds) -> None:
    first, second, third = ages
    chain = (
        run("first", first),
        run("second", second, starts_from="first", needs_base=True),
        run("third", third, starts_from="second", needs_base=True),
    )
    assert gone(plan_gc(Found(chain), bounds, NOW)) == dict.fromkeys(("first", "second", "third"), "run")


def test_prepared_data_stays_where_it_was_not_asked_for() -> None:
    plan = plan_gc(Found((), (data("x", 99),)), OLD, NOW)
    assert gone(plan) == {} and "--prepared" in why(plan, "x")


def test_sources_are_as_young_as_what_is_made_of_them() -> None:
    sets = (data("joint", 2, sources=frozenset({"s"})), data("s", 99))
    assert gone(plan_gc(Found((), sets), ALL, NOW)) == {}


def test_prepared_data_stays_while_somebody_prepares_it_or_may_be_about_to_use_it() -> None:
    busy = plan_gc(Found((), (data("x", 99, lease_s=NOW - 60), data("y", 99, lease_s=NOW - 2 * DAY))), ALL, NOW)
    assert gone(busy) == {"y": "prepared"}
    starting = run("starting", 0.0, status="running", prepared=frozenset(), may_prepare=True)
    plan = plan_gc(Found((starting,), (data("x", 99),)), ALL, NOW)
    assert gone(plan) == {} and why(plan, "x") == "starting may be about to use it"


def test_to_make_room_unused_data_goes_first_and_that_of_removed_runs_with_them() -> None:
    found = Found((run("a", 9),), (data("d", 10), data("x", 10)))
    room = [gone(plan_gc(found, Bounds(most_size=most, prepared=True), NOW)) for most in (119, 109, 49, 9)]
    assert room == [
        {"x": "prepared"},
        {"x": "prepared", "a": "checkpoints"},
        {"x": "prepared", "a": "run"},
        {"x": "prepared", "a": "run", "d": "prepared"},
    ]


def test_what_was_half_removed_goes_with_any_bound() -> None:
    plan = plan_gc(Found((run("a", 1),), leftovers=(Leftover("half", 7),)), Bounds(most_size=100), NOW)
    assert [left.name for left in plan.leftovers] == ["half"] and gone(plan) == {} and plan.left == 100


# Whatever there is, and whatever is asked for.

names = st.sampled_from("abcdef")


@st.composite
def _runs(draw: st.DrawFn) -> tuple[RunFacts, ...]:
    runs = []
    for name in draw(st.sets(names)):
        size = draw(st.integers(0, 100))
        days = draw(st.floats(0, 60))
        runs.append(
            run(
                name, days, size, draw(st.integers(0, size)),
                status=draw(st.sampled_from(["succeeded", "failed", "interrupted", "running", "lost", "unreadable"])),
                touched_s=NOW - draw(st.floats(0, 60)) * DAY,
                prepared=frozenset(draw(st.sets(st.sampled_from("pqr")))),
                may_prepare=draw(st.booleans()),
                starts_from=draw(st.none() | names),
                needs_base=draw(st.booleans()),
            )
        )  # fmt: skip
    return tuple(runs)


prepared_sets = st.sets(st.sampled_from("pqrs")).flatmap(
    lambda chosen: st.tuples(
        *(
            st.builds(
                lambda name, days, size, sources: data(name, days, size, sources=frozenset(sources) - {name}),
                st.just(name), st.floats(0, 60), st.integers(0, 100), st.sets(st.sampled_from("pqrs")),
            )
            for name in sorted(chosen)
        )
    )
)  # fmt: skip
founds = st.builds(
    lambda runs, sets, left: Found(runs, sets, left),
    _runs(), prepared_sets, st.just(()) | st.just((Leftover("left", 9),)),
)  # fmt: skip
bounds_of_all_kinds = st.builds(
    Bounds,
    st.none() | st.floats(0, 60 * DAY), st.none() | st.integers(0, 600), st.integers(0, 4),
    st.booleans(), st.booleans(),
)  # fmt: skip
held_ones = st.builds(
    Held, st.dictionaries(names, st.just("held"), max_size=2), st.dictionaries(names, st.just("model"), max_size=2)
)


def after(found: Found, plan: GcPlan) -> Found:
    """What there is once the plan was carried out."""
    runs = tuple(
        dataclasses.replace(
            one.run, size=one.run.size - one.freed, checkpoint_size=0 if one.freed else one.run.checkpoint_size
        )
        for one in plan.runs
        if one.to_remove is not ToRemove.RUN
    )  # fmt: skip
    sets = tuple(one.prepared for one in plan.prepared if not one.to_remove)
    return Found(runs, sets, () if plan.leftovers else found.leftovers)


@settings(max_examples=100, deadline=None)
@given(founds, bounds_of_all_kinds, held_ones)
def test_whatever_is_asked_for_the_living_and_the_held_stay(found: Found, bounds: Bounds, held: Held) -> None:
    plan = plan_gc(found, bounds, NOW, held)
    by_name = {one.run.name: one for one in plan.runs}
    assert sorted(by_name) == sorted(one.name for one in found.runs) and len(plan.prepared) == len(found.prepared)
    for one in plan.runs:
        if one.run.status in ("running", "unreadable") or one.run.name in held.wholly:
            assert one.to_remove is ToRemove.NOTHING and one.why
        if one.run.name in held.models or bounds.checkpoints_only:
            assert one.to_remove is not ToRemove.RUN
        assert one.why or not bounds.any or one.to_remove is ToRemove.NOTHING
    newest = (
        sorted(found.runs, key=lambda run: (run.since_s, run.name))[-bounds.keep_last :] if bounds.keep_last else []
    )
    assert all(by_name[run.name].to_remove is ToRemove.NOTHING for run in newest)
    needed = {data for one in plan.runs if one.to_remove is not ToRemove.RUN for data in one.run.prepared}
    assert not needed & {one.prepared.name for one in plan.prepared if one.to_remove}
    assert bounds.prepared or not any(one.to_remove for one in plan.prepared)


@settings(max_examples=100, deadline=None)
@given(founds, bounds_of_all_kinds, held_ones)
def test_the_sums_are_right_and_a_second_time_has_nothing_to_do(found: Found, bounds: Bounds, held: Held) -> None:
    plan = plan_gc(found, bounds, NOW, held)
    rest = after(found, plan)
    assert rest.size == plan.left and plan.size == found.size
    again = plan_gc(rest, bounds, NOW, held)
    assert again.freed == 0 or bounds.keep_last  # fewer runs: others are the last ones


@settings(max_examples=100, deadline=None)
@given(founds, st.integers(0, 600), st.integers(0, 600), held_ones, st.booleans())
def test_more_room_never_costs_more(found: Found, one: int, other: int, held: Held, prepared: bool) -> None:
    less, more = sorted((one, other))
    plans = [plan_gc(found, Bounds(most_size=most, prepared=prepared), NOW, held) for most in (less, more)]
    much, little = map(gone, plans)
    assert little.keys() <= much.keys()
    assert all(much[name] in (goes, "run") for name, goes in little.items())


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0s", 0), ("45s", 45), ("90m", 5400), ("12h", 43200), ("30d", 30 * DAY), ("2w", 14 * DAY), ("0.5D", 43200)],
)
def test_ages(text: str, seconds: float) -> None:
    assert duration_s("--older-than", text, or_zero=True) == seconds


@pytest.mark.parametrize("text", ["30", "-1d", "", "d", "1y", "nan d", "infd", "1d1d", "１d"])
def test_what_is_no_age_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="as in 12h or 30d"):
        duration_s("--older-than", text, or_zero=True)


@pytest.mark.parametrize(
    ("text", "count"),
    [("500GB", 500 * 10**9), ("2TiB", 2 * 2**40), ("1.5 MB", 1_500_000), ("0B", 0), ("1kb", 1000), ("3KiB", 3072)],
)
def test_sizes(text: str, count: int) -> None:
    assert size_bytes(text) == count


@pytest.mark.parametrize("text", ["500", "500G", "-1GB", "", "GB", "1 iB", "1EB", "1e400GB", "9" * 400 + "GB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="as in 500GB"):
        size_bytes(text)


def test_sizes_in_words() -> None:
    assert [byte_size(count) for count in (0, 999, 1000, 999_600, 12_345_678, 3 * 10**12)] == [
        "0 B", "999 B", "1 kB", "1.0 MB", "12.3 MB", "3.0 TB",
    ]  # fmt: skip
