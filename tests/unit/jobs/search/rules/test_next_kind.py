"""Which kind of trial may begin next, and how many gangs are of use."""

from __future__ import annotations

import math
from collections.abc import Sequence

from jobs.search.rules.budget import BudgetPlan, most_to_train, next_kind
from jobs.search.trial import State, Trial
from tests.support.trials import trial_of


def begun(
    state: State = "running", scores: Sequence[tuple[int, float]] = ((5, 0.5),), without_rungs: bool = False
) -> Trial:
    return trial_of(1, state, scores, without_rungs=without_rungs)


def test_what_kind_of_trial_is_next() -> None:
    plan = BudgetPlan(compared=2, whole_runs=1, first_share=0.5)
    one, two = begun(), begun()
    assert next_kind([], plan, 0.0, False) == next_kind([one], plan, 0.4, False) == "compared"
    assert next_kind([one], plan, 0.5, False) == next_kind([one, two], plan, 0.0, False) == "wait"
    one.state, two.state = "paused", "finished"
    assert next_kind([one, two], plan, 0.9, True) == "wait"
    assert next_kind([one, two], plan, 0.9, False) == "whole"
    assert next_kind([one, two], plan, 1.0, False) == "done"
    interrupted = begun(state="paused", scores=())  # before its first rung: it goes on when a gang is free
    assert next_kind([one, interrupted], plan, 0.9, False) == "wait"
    last = begun(without_rungs=True)
    assert next_kind([one, two, last], plan, 0.9, False) == "wait"
    last.state = "finished"
    assert next_kind([one, two, last], plan, 0.9, False) == "done"


def test_finalists_are_repeated_when_all_else_is_done() -> None:
    done, running, plan = begun(state="finished"), begun(), BudgetPlan(compared=1)
    assert next_kind([done], plan, 0.5, False, to_repeat=True) == "repeat"
    assert next_kind([done, running], plan, 0.5, False, to_repeat=True) == "wait"
    assert next_kind([done], plan, 1.2, False, to_repeat=True) == "repeat"  # beyond the budget
    assert next_kind([], plan, 0.0, False, to_repeat=False) == "compared"
    assert next_kind([done], plan, 0.5, False, is_repeating=True) == "wait"


def test_no_whole_run_begins_if_all_compared_trials_have_failed() -> None:
    plan = BudgetPlan(compared=2, whole_runs=1, extrapolates=True)
    failed = [begun(state="failed", scores=()), begun(state="failed", scores=())]
    assert next_kind(failed, plan, 0.9, False) == "done"
    assert next_kind([failed[0], begun(state="paused")], plan, 0.9, False) == "whole"


def test_a_search_whose_first_trials_all_fail_ends() -> None:
    plan, failed = BudgetPlan(runs=10), begun(state="failed", scores=())
    assert next_kind([failed] * 7, plan, 0.0, False) == "compared"
    assert next_kind([failed] * 7 + [begun(scores=())], plan, 0.0, False) == "compared"
    assert next_kind([failed] * 8, plan, 0.0, False) == "done"
    assert next_kind([*[failed] * 8, begun(state="finished")], plan, 0.0, False) == "compared"


def test_no_whole_run_has_the_values_of_a_trial_that_did_not_finish() -> None:
    late = begun(state="failed", scores=[(5, 0.5), (9, 0.4)])
    trials = [late, begun(state="paused")]
    assert next_kind(trials, BudgetPlan(compared=2, whole_runs=1), 0.9, False) == "done"
    assert next_kind(trials, BudgetPlan(compared=2, whole_runs=2, extrapolates=True), 0.9, False) == "whole"


def test_no_more_gangs_are_needed_than_trials_can_still_be_trained_at_once() -> None:
    paused, running = begun(state="paused", scores=[(5, 0.5)]), begun()
    plan = BudgetPlan(compared=4, whole_runs=1)
    assert most_to_train([running], plan, "compared", 0, 0) == math.inf
    assert most_to_train([paused, paused, running, running], plan, "wait", 0, 0) == 5  # all may go on, and a whole run
    assert most_to_train([paused, paused, running], plan, "wait", 1, 0) == 4
    assert most_to_train([paused, paused], plan, "whole", 0, 0) == 1
    whole = begun(without_rungs=True)
    assert most_to_train([paused, paused, whole], plan, "wait", 0, 0) == 1
    assert most_to_train([paused, paused], plan, "done", 0, 3) == 3
    finished = begun(state="finished", scores=[(9, 0.4)], without_rungs=True)
    assert most_to_train([paused, finished], plan, "repeat", 0, 3) == 3
    aimed = BudgetPlan(compared=4, whole_runs=2, extrapolates=True)
    gone_on = begun(state="running", scores=[(5, 0.5), (9, 0.4)])
    assert most_to_train([paused, paused, running], aimed, "wait", 0, 0) == 3
    assert most_to_train([paused, paused], aimed, "wait", 1, 0) == 2
    assert most_to_train([paused, gone_on, whole], aimed, "wait", 0, 0) == 2
    assert most_to_train([paused, finished, finished], aimed, "done", 0, 0) == 0
