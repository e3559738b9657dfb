"""Whole searches with the rules and proposals of a sweep, on losses from a formula: what they train and how long."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.search.changes import changed, larger
from jobs.search.ledger import Ledger
from jobs.search.planned import Cost, cost_of, plan_if_later, plan_of
from jobs.search.rules.budget import most_gangs
from jobs.search.rules.prior import with_prior
from jobs.search.rules.rungs import cooldown_of, next_stop
from jobs.search.rules.untried import key_of
from jobs.search.spending import kind_within
from jobs.search.trial import Trial
from jobs.search.tuning.proposing import Proposer
from jobs.search.tuning.tuner import halved
from jobs.training.mailbox import Answer
from tests.unit.jobs.spec.test_sweep import BASE, sweep_of

RATE = "learning_rate"
ONLY_RATE: dict[str, Any] = {RATE: {"min": 1e-5, "max": 1e-3, "log": True}}
BOTH = {**ONLY_RATE, "warmup_ratio": {"min": 0.0, "max": 0.2}}

Loss = Callable[[dict[str, Any], float], float]


def smooth(values: dict[str, Any], share: float) -> float:
    """The loss after a share of a run. Rates far above the best one diverge."""
    off = math.log(values.get(RATE, 1e-4) / (2e-4 * share**-0.32))
    if off > 2:
        return math.nan
    loss = 0.5 + 0.3 * (1 - share) + 0.06 * off**2 + 0.3 * (values.get("warmup_ratio", 0.1) - 0.1) ** 2
    return float(loss + 0.003 * math.sin(1e6 * values.get(RATE, 0.0)))


def equal(values: dict[str, Any], share: float) -> float:
    return 0.5


def nan(values: dict[str, Any], share: float) -> float:
    return math.nan


def nan_at_the_end(values: dict[str, Any], share: float) -> float:
    """High rates diverge after the rung."""
    return math.nan if share == 1 and values[RATE] > 1e-4 else smooth(values, share)


class Simulated:
    """A search whose gangs train at once, and whose steps take one second."""

    def __init__(self, folder: Path, steps: int = 100, gangs: int = 1, loss: Loss = smooth, **fields: Any) -> None:
        if fields.get("algorithm", "auto") == "auto" and RATE in fields["space"]:
            fields = {"prior": {RATE: 1e-4}, **fields}
        sweep = with_prior(sweep_of(folder, **{"base": BASE, **fields}))[0]
        self.steps, self.loss = steps, loss
        self.ledger = Ledger(sweep, str(folder / "found"), lambda spec: steps, 1000.0 * steps)
        self.ledger.set_bound(None, round(1000 * self.ledger.probe_steps))
        self.gangs, self.now = min(gangs, most_gangs(sweep)), self.ledger.probe_steps

    @property
    def cost(self) -> Cost:
        return cost_of(self.ledger.sweep, self.steps, self.gangs, 1, 1.0, 1000.0 * self.steps)

    @property
    def runs(self) -> float:
        """Whole runs that the search has taken, without repeats."""
        tokens = self.ledger.probe_tokens + sum(trial.tokens for trial in self.ledger.searched)
        return tokens / self.ledger.tokens_per_run

    def extend(self, runs: float) -> None:
        self.ledger.change(changed(self.ledger.sweep, larger(self.ledger, {"runs": runs})))

    def run(self) -> Simulated:
        self._plan, self._proposer = plan_of(self.ledger), Proposer(self.ledger)
        running: list[tuple[float, int]] = []
        while True:
            while len(running) < self.gangs and (trial := self._next({number for _, number in running})) is not None:
                self.ledger.began(trial)
                heapq.heappush(running, (self.now + self._length(trial), trial.number))
            if not running:
                return self
            self.now, number = heapq.heappop(running)
            self._answer(self.ledger.trials[number])

    def _next(self, running: set[int]) -> Trial | None:
        """Return the trial that a free gang trains now."""
        ledger = self.ledger
        kind = kind_within(ledger, self._plan, {"01": (self.now, self.now * self.gangs)})
        going = [*ledger.moved_to_later_rung, *halved(ledger, kind)] if ledger.sweep.scheduler == "halving" else []
        if kind == "done" or (paused := [one for one in going if one not in running]):
            return None if kind == "done" else ledger.trials[paused[0]]
        if kind == "repeat" and (first := ledger.to_repeat()) is not None:
            return ledger.add(first.values, without_rungs=True, repeats=first.number)
        if kind not in ("compared", "whole"):
            return None
        return ledger.add(self._proposer.next_values(kind == "whole"), without_rungs=kind == "whole")

    def _length(self, trial: Trial) -> int:
        until = next_stop(self.ledger.sweep, trial)
        return until - trial.step + (cooldown_of(self.ledger.sweep, self.steps) if until < self.steps else 0)

    def _answer(self, trial: Trial) -> None:
        until, length = next_stop(self.ledger.sweep, trial), self._length(trial)
        score, judged = self.loss(trial.values, until / self.steps), self.ledger.sweep.judged
        answer = Answer(status="failed", reason="diverged", diverged=True)
        if math.isfinite(score):
            metrics, base = {judged: score}, {judged: 0.9 if self.ledger.sweep.lower_is_better else 0.0}
            answer = Answer(status="finished" if until == self.steps else "paused", metrics=metrics, base=base)
        counts = {"step": until, "tokens": 1000 * length, "seconds": float(length)}
        self.ledger.answered(trial, answer.model_copy(update=counts))
        if self.ledger.is_too_early and (later := plan_if_later(self.ledger)) is not None:
            self.ledger.set_later()
            self._plan = later
        self._proposer.tell(trial)


SEARCHES: list[dict[str, Any]] = [
    {"space": BOTH},
    {"space": BOTH, "gangs": 4},
    {"space": BOTH, "budget": {"runs": 6.5}, "gangs": 8},
    {"space": ONLY_RATE, "budget": {"runs": 9}, "gangs": 3},
    {"space": ONLY_RATE, "budget": {"runs": 9}, "seeds": 3},
    {"space": BOTH, "seeds": 3},
    {"space": BOTH, "budget": {"runs": 7}, "steps": 12},
    {"space": {**ONLY_RATE, "weight_decay": [0.0, 0.1]}, "budget": {"runs": 12}, "gangs": 2},
    {"space": BOTH, "budget": {"trials": 12}, "scheduler": "none"},
    {"space": BOTH, "budget": {"runs": 9}, "rungs": [0.25, 0.5]},
    {"space": {RATE: [1e-5, 1e-4, 1e-3], "warmup_ratio": [0.0, 0.1]}, "budget": {"runs": 9}},
    {"space": {"warmup_ratio": [0.0, 0.01, 0.02, 0.1]}, "algorithm": "grid", "steps": 24},
    {"space": BOTH, "algorithm": "random", "budget": {"runs": 2.5}, "gangs": 3, "seeds": 2},
    {"space": BOTH, "algorithm": "tpe", "scheduler": "halving", "budget": {"trials": 9}, "seeds": 2},
    {"space": BOTH, "budget": {"minutes": 0.5}},
    {"space": ONLY_RATE, "budget": {"minutes": 12.0}, "gangs": 2},
    {"space": BOTH, "budget": {"gpu_hours": 0.1}, "gangs": 3},
    {"space": ONLY_RATE, "algorithm": "random", "budget": {"gpu_hours": 0.3}, "gangs": 3, "seeds": 3},
    {"space": BOTH, "budget": {"runs": 9}, "loss": equal},
    {"space": {**ONLY_RATE, "weight_decay": [0.0, 0.1]}, "budget": {"runs": 9}, "gangs": 4, "loss": nan_at_the_end},
    {"space": ONLY_RATE, "budget": {"runs": 5}, "metric": "loss", "mode": "max", "loss": lambda *at: 1 - smooth(*at)},
]


@pytest.mark.parametrize("fields", SEARCHES)
def test_a_search_takes_what_its_plan_says_and_trains_nothing_twice(tmp_path: Path, fields: dict[str, Any]) -> None:
    search = Simulated(tmp_path, **fields)
    said = search.cost
    search.run()
    ledger, run_s = search.ledger, search.steps
    # A paused trial that continues takes fewer steps than a whole run; other whole runs begin when it has ended.
    waits = 0 if search.gangs == 1 else 0.75 * run_s
    assert said.least_hours * 3600 - run_s <= search.now <= said.least_hours * 3600 + 1 + waits
    taken = sum(trial.tokens for trial in ledger.trials.values()) + ledger.probe_tokens
    assert said.tokens - ledger.tokens_per_run <= taken <= said.tokens + 1000
    if (runs := ledger.sweep.budget.runs) is not None:
        assert search.runs <= (runs if ledger.sweep.scheduler == "halving" else math.ceil(runs))
    values = [(trial.without_rungs, key_of(ledger.sweep, trial.values, search.steps)) for trial in ledger.searched]
    assert len(set(values)) == len(values), "the same training would give the same result"
    assert ledger.best is not None


@pytest.mark.parametrize("space", [BOTH, ONLY_RATE, {**ONLY_RATE, "weight_decay": [0.0, 0.1]}])
@pytest.mark.parametrize("more", [(3.0,), (0.5, 0.5, 0.5, 1.0, 2.0)])
def test_a_larger_budget_is_kept_too(tmp_path: Path, space: dict[str, Any], more: tuple[float, ...]) -> None:
    search = Simulated(tmp_path, space=space).run()
    for runs in more:
        search.extend(runs)
        search.run()
        budget = search.ledger.sweep.budget.runs
        assert budget is not None and search.runs <= budget
    assert search.runs > 3.2 + sum(more) - 1.4, "less than a whole run and a rate is left"


def test_if_the_only_whole_run_diverges_one_more_trial_continues(tmp_path: Path) -> None:
    search = Simulated(tmp_path, space=ONLY_RATE, loss=nan_at_the_end).run()
    assert search.ledger.best is not None and 3.2 < search.runs < 3.2 + 0.75
    other = Simulated(
        tmp_path / "jobs", space=ONLY_RATE, loss=lambda values, at: smooth(values, at) if at < 1 else nan({}, at)
    )
    assert other.run().ledger.best is None and other.runs < 3.2 + 1.5


@pytest.mark.parametrize("prior", [7e-5, 2e-4])
@pytest.mark.parametrize("limit", [1.2e-4, 1.6e-4])
def test_if_the_only_whole_run_diverges_another_has_a_lower_rate(tmp_path: Path, prior: float, limit: float) -> None:
    """Trials that were compared may all be far from it."""

    def diverges_at_the_end(values: dict[str, Any], at: float) -> float:
        return math.nan if at == 1 and values[RATE] > limit else smooth(values, at)

    search = Simulated(tmp_path, space=ONLY_RATE, prior={RATE: prior}, loss=diverges_at_the_end).run()
    best = search.ledger.best
    assert best is not None and best.values[RATE] < limit and search.runs < 3.2 + 1


def test_a_search_in_which_all_trials_diverge_ends_early(tmp_path: Path) -> None:
    search = Simulated(tmp_path, space=BOTH, budget={"runs": 40}, loss=nan).run()
    assert search.ledger.best is None and search.runs < 4
