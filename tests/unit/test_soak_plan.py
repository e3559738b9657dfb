"""The plan of a soak is a pure function of its seed."""

from __future__ import annotations

from tests.soak.plan import CHANCES, FIRST_FAULT_S, HARD, JOBS_AT_ONCE, Kind, plan


def test_the_same_seed_gives_the_same_plan_and_another_seed_another_one() -> None:
    assert plan(7, 600.0) == plan(7, 600.0)
    assert str(plan(7, 600.0)) == str(plan(7, 600.0))
    assert plan(7, 600.0).acts != plan(8, 600.0).acts


def test_a_longer_soak_begins_with_the_same_faults_as_a_shorter_one() -> None:
    def faults(length_s: float) -> list[object]:
        return [act for act in plan(3, length_s).acts if act.kind is not Kind.SUBMIT]

    short, long = faults(120.0), faults(600.0)
    assert len(short) > 5 and long[: len(short)] == short


def test_acts_come_in_order_within_the_length_and_the_first_fault_finds_jobs() -> None:
    found = plan(1, 600.0).acts
    assert [act.at_s for act in found] == sorted(act.at_s for act in found)
    assert all(0.0 <= act.at_s <= 600.0 for act in found)
    assert [act.kind for act in found[:JOBS_AT_ONCE]] == [Kind.SUBMIT] * JOBS_AT_ONCE
    assert min(act.at_s for act in found if act.kind is not Kind.SUBMIT) == FIRST_FAULT_S


def test_ten_minutes_have_every_kind_of_fault_over_a_few_seeds() -> None:
    kinds = {act.kind for seed in range(3) for act in plan(seed, 600.0).acts}
    assert kinds == set(Kind)
    assert CHANCES.keys() == set(Kind) - {Kind.SUBMIT} and CHANCES.keys() > HARD


def test_jobs_have_names_of_their_own_and_some_of_them_train() -> None:
    works = [act.work for act in plan(5, 600.0).acts if act.work is not None]
    assert len({work.name for work in works}) == len(works) > 20
    trainings = [work for work in works if work.training]
    assert len(trainings) >= 4 and all(work.steps > 0 and work.exit_code == 0 for work in trainings)
    assert any(work.exit_code for work in works) and works[0].training


def test_nothing_is_submitted_in_the_last_fifth() -> None:
    assert max(act.at_s for act in plan(5, 600.0).acts if act.kind is Kind.SUBMIT) <= 480.0
    assert len([act for act in plan(5, 60.0, submit_until_s=0.0).acts if act.work]) == JOBS_AT_ONCE


def test_a_plan_can_be_read() -> None:
    text = str(plan(5, 120.0))
    assert text.startswith("seed 5, 120 s, ") and "soak-000-train" in text
    assert len(text.splitlines()) == len(plan(5, 120.0).acts) + 1
