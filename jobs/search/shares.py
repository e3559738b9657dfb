"""The trials and runs that a sweep's budget pays for, and the steps done so far. Pure; light to import."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jobs.errors import SpecError
from jobs.search.rules.auto import LATER
from jobs.search.rules.budget import BudgetPlan, budget_plan, compared_steps, runs_of, too_little
from jobs.search.trials import Trials, most_repeats
from jobs.spec.sweep import SweepSpec


@dataclass(frozen=True)
class Shares:
    """The trials and runs that the budget pays for.

    Attributes:
        runs: whole runs of the base; infinite if tokens do not limit the search.
    """

    plan: BudgetPlan
    runs: float

    @classmethod
    def of(cls, sweep: SweepSpec, total_steps: int, per_run: float, probe_steps: float) -> Shares:
        """Compute what the budget pays for.

        Args:
            total_steps, per_run: optimizer steps and tokens of one whole run of the base.
            probe_steps: cost of the probe.

        Raises:
            SpecError: the budget does not pay for one trial.
        """
        runs = runs_of(sweep.budget, per_run)
        if (wrong := too_little(sweep, total_steps, runs)) is not None:
            raise SpecError.at("budget", wrong)
        return cls(budget_plan(sweep, total_steps, per_run, probe_steps), runs)

    @classmethod
    def if_later(cls, trials: Trials) -> Shares | None:
        """Compute what the budget pays for with the later rung; None if more trials have begun than that."""
        try:
            later = trials.sweep.model_copy(update={"rungs": LATER})
            shares = cls.of(later, trials.total_steps, trials.tokens_per_run, trials.probe_steps)
        except SpecError:
            return None
        return shares if len(trials.searched) <= shares.plan.compared else None

    def steps(self, trials: Trials) -> int | None:
        """Return the optimizer steps of all planned trials, without cool-downs; None if only time limits the search.

        Each trial is counted with the steps of the base.
        """
        total, repeats = trials.total_steps, most_repeats(trials.sweep)
        if trials.sweep.scheduler == "halving" and self.plan.compared < math.inf:
            without = trials.sweep.model_copy(update={"cooldown": 0.0})
            return compared_steps(without, int(self.plan.compared), total) + (self.plan.whole_runs + repeats) * total
        count = min(self.plan.compared, self.runs)
        return None if math.isinf(count) else int((count + repeats) * total)


def steps_done(trials: Trials) -> int:
    """Return the optimizer steps of all trials so far. With other batches, a trial counts by its share of a run."""
    every = list(trials.trials.values())
    return round(sum(trial.step / trial.total_steps * trials.total_steps for trial in every if trial.total_steps))
