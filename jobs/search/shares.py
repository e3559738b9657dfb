"""The trials and runs that a sweep's budget pays for, and the steps done so far. Pure; light to import."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jobs.errors import SpecError
from jobs.search.rules.auto import LATER
from jobs.search.rules.budget import BudgetPlan, budget_plan, compared_steps, runs_of, too_little
from jobs.search.rules.rungs import cooldown_of, stops_of
from jobs.search.trials import Trials, most_repeats
from jobs.spec.sweep import SweepSpec


@dataclass(frozen=True)
class Shares:
    """The trials and runs that the budget pays for.

    Attributes:
        runs: whole runs of the base; infinite if tokens do not bound the search.
    """

    plan: BudgetPlan
    tokens_per_run: float
    runs: float

    @classmethod
    def of(cls, sweep: SweepSpec, total_steps: int, per_run: float, probe_steps: float) -> Shares:
        """Compute what the budget pays for. Raises SpecError: it does not pay for one trial.

        Args:
            per_run: tokens of one whole run of the base.
            probe_steps: cost of the probe.
        """
        stops, cooldown = stops_of(sweep, total_steps), cooldown_of(sweep, total_steps)
        plan = budget_plan(sweep, stops, cooldown, per_run, probe_steps)
        runs = runs_of(sweep.budget, per_run)
        if (wrong := too_little(sweep, total_steps, runs)) is not None:
            raise SpecError.at("budget", wrong)
        return cls(plan, per_run, runs)

    @classmethod
    def if_later(cls, trials: Trials) -> Shares | None:
        """What the budget pays for with the later rung. None: it does not pay for the trials that have begun."""
        try:
            later = trials.sweep.model_copy(update={"rungs": LATER})
            shares = cls.of(later, trials.total_steps, trials.tokens_per_run, trials.probe_steps)
        except SpecError:
            return None
        return shares if len(trials.searched) <= shares.plan.compared else None

    def steps(self, ledger: Trials) -> int | None:
        """Optimizer steps of all planned trials, each as long as the base; None if the budget does not say."""
        stops = stops_of(ledger.sweep, ledger.total_steps)
        if ledger.sweep.scheduler == "halving" and self.plan.compared < math.inf:
            compared = compared_steps(ledger.sweep, int(self.plan.compared), stops, 0)
            return compared + (self.plan.straight + most_repeats(ledger.sweep)) * ledger.total_steps
        trials = min(self.plan.compared, self.runs)
        return None if math.isinf(trials) else int((trials + most_repeats(ledger.sweep)) * ledger.total_steps)


def steps_done(trials: Trials) -> int:
    """Return the optimizer steps that all trials have done. Steps of longer or shorter trials count in proportion."""
    every = list(trials.trials.values())
    return round(sum(trial.step / trial.total_steps * trials.total_steps for trial in every if trial.total_steps))
