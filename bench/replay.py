"""Compare search algorithms on recorded curves, hundreds of seeds in a few minutes.

    python -m bench.replay minilm [--seeds 200]

Replays what a sweep would have done, with its own proposals, rules and budget, against the table of `bench/curves.py`.
The loss of a trial is interpolated between recorded ones, in the logarithm of the learning rate and in the warmup. All
trials of one replay have the same recorded seed, as those of a sweep have.

All search from a tenth of a prior to ten times it. The prior is off by up to a factor of three from the middle of the
recorded rates, another one in each replay; beyond the recorded rates, the nearest one's loss is taken.

All may take the same share of the tokens of a 5x5 grid of plain runs: what `auto` takes with its budget. An algorithm
without rungs takes the number of whole runs that is nearest to it. Counted are the tokens of training, of cool-downs,
of the probe that bounds the rate, and of held-out samples whenever they are scored: in a plain run before its first and
after its last step; in a sweep once before all trials, at each rung and at the end of each trial.

Regret: how much worse the chosen values are than the best recorded ones, both as the mean over the recorded seeds at
the end of a run, as a share of the latter. `reached` is the same with the loss that the search itself has ended with,
of its one seed. The first line is no search: see `best_of_each_seed`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import numpy as np

from bench.curves import DATA, TASKS, sweep_of
from jobs.search.planned import plan_if_later
from jobs.search.rules.auto import probe_steps, probed_rates
from jobs.search.rules.budget import budget_plan, next_kind
from jobs.search.rules.prior import with_prior
from jobs.search.rules.rungs import cooldown_of, next_stop
from jobs.search.trial import Trial
from jobs.search.trials import Trials
from jobs.search.tuning.proposing import Proposer
from jobs.search.tuning.tuner import scheduler_of, with_resource
from jobs.spec.sweep import SweepSpec
from jobs.training.mailbox import Answer

GRID: Final = 25  # trials of a 5x5 grid
_PROBE_STEPS: Final = 19  # whose rows are taken: one step, and two that are scored nine times
MIDDLE, PRIOR_OFF = 1e-4, 3.0
SHARE: Final = 0.145  # of its tokens: what `auto` takes with its budget of 3.2 runs
WAYS: Final[dict[str, dict[str, Any]]] = {
    "auto": {"algorithm": "auto"},
    "random": {"algorithm": "random"},
    "grid": {"algorithm": "grid"},
    "tpe": {"algorithm": "tpe"},
    "gp": {"algorithm": "gp"},
    "asha": {"algorithm": "random", "scheduler": "asha"},
}


class Table:
    """The recorded curves of a task."""

    def __init__(self, task: str, records: Sequence[dict[str, Any]]) -> None:
        self._records = {(one["learning_rate"], one["warmup_ratio"], one["seed"]): one for one in records}
        self.rates, warmups, self.seeds = (sorted(set(values)) for values in zip(*self._records, strict=True))
        self.warmups = [  # that are recorded in full
            warmup
            for warmup in warmups
            if all((rate, warmup, seed) in self._records for rate in self.rates for seed in self.seeds)
        ]
        self.total_steps = TASKS[task].steps
        # Of the first step's rows, before it: about the score of the model before training.
        self.base = statistics.mean(one["training_loss"][0] for one in records)
        self.evaluation_tokens = float(records[0]["evaluation_tokens"])
        cooldowns = len(TASKS[task].rungs) * TASKS[task].cooldown  # whose tokens are counted in the records
        self.run_tokens = sum(records[0]["tokens"].values()) * self.total_steps / (self.total_steps + cooldowns)

    def loss(self, rate: float, warmup: float, seed: int, step: int, cooled: bool) -> float:
        """The held-out loss of a trial after `step` steps. With `cooled`, the loss after the cool-down at that step."""
        at_warmups = [
            np.interp(
                math.log(rate),
                np.log(self.rates),
                [self._recorded(one, at, seed, step, cooled) for one in self.rates],
            )
            for at in self.warmups
        ]
        return float(np.interp(warmup, self.warmups, at_warmups))

    def _recorded(self, rate: float, warmup: float, seed: int, step: int, cooled: bool) -> float:
        record = self._records[(rate, warmup, seed)]
        kind = "cooled" if cooled and str(step) in record["cooled"] else "loss"
        return float(record[kind].get(str(step), math.nan))

    def quality(self, rate: float, warmup: float) -> float:
        """Mean over the seeds of the loss at the end of a run."""
        losses = [self.loss(rate, warmup, seed, self.total_steps, False) for seed in self.seeds]
        return float(np.mean(losses))

    @property
    def reference(self) -> tuple[float, float, float]:
        """The least mean final loss in the table, with its learning rate and warmup."""
        return min((self.quality(rate, warmup), rate, warmup) for rate in self.rates for warmup in self.warmups)

    @property
    def seed_deviation(self) -> float:
        """Standard deviation over seeds of the final loss, for the best learning rate and warmup."""
        _, rate, warmup = self.reference
        return statistics.stdev(self.loss(rate, warmup, seed, self.total_steps, False) for seed in self.seeds)

    @property
    def allowed_regret(self) -> float:
        """0.2 %, or one standard deviation over seeds if that is more."""
        return max(0.002, self.seed_deviation / self.reference[0])


@dataclass
class Replay:
    """One search on a table.

    Attributes:
        tokens: that it may take, evaluations counted.
    """

    table: Table
    sweep: SweepSpec
    data_seed: int
    tokens: float
    taken: float = 0.0

    def run(self) -> Trials:
        self.known = Trials(self.sweep, "replayed")
        self.taken = self.table.evaluation_tokens
        if probed_rates(self.sweep):
            self.taken += _PROBE_STEPS / self.table.total_steps * self.table.run_tokens
        self._proposer = Proposer(self.known)
        self._total = self.known.total_steps = self.table.total_steps
        self.known.tokens_per_run = self.table.run_tokens
        plan = budget_plan(self.sweep, self._total, self.table.run_tokens, probe_steps(self.sweep))
        halving, asha = self.sweep.scheduler == "halving", scheduler_of(self.sweep)
        if asha is not None:
            asha.set_search_properties(self.sweep.judged, "min")
        self.known.base_score = self.table.base
        while True:
            if self.known.is_too_early and (later := plan_if_later(self.known)) is not None:
                self.known.compare_later()
                plan = later
            used = 0.0 if halving else (self.taken + 0.5 * self.table.run_tokens) / self.tokens
            trials = list(self.known.trials.values())
            going = self.known.going_on
            kind = next_kind(trials, plan, used, bool(going))
            for number in self.known.moved_to_later_rung:
                self._to_next_stop(self.known.trials[number])
            if kind == "done":
                return self.known
            if kind == "wait":
                for number in going:
                    self._to_next_stop(self.known.trials[number])
                continue
            values = self._proposer.next_values(kind == "whole")
            trial = self.known.new_trial(len(self.known.trials) + 1, values, kind == "whole")
            self.known.trials[trial.number] = trial
            self._to_next_stop(trial)
            while not halving and not trial.is_over:
                self._compare(asha, trial)

    def _to_next_stop(self, trial: Trial) -> None:
        until = next_stop(self.known.sweep, trial)
        cooldown = cooldown_of(self.sweep, self._total) if until < self._total else 0
        values = {name.rpartition(".")[2]: value for name, value in trial.values.items()}
        loss = self.table.loss(
            values["learning_rate"], values["warmup_ratio"], self.data_seed, until, cooled=cooldown > 0
        )
        steps = until - trial.step + cooldown
        tokens = round(steps / self._total * self.table.run_tokens)
        self.taken += tokens + self.table.evaluation_tokens
        status = "finished" if until == self._total else "paused"
        if math.isfinite(loss):
            answer = Answer(status=status, step=until, tokens=tokens, metrics={self.sweep.judged: loss})
        else:
            answer = Answer(status="failed", step=until, tokens=tokens, reason="diverged")
        self.known.take(trial, answer)
        self._proposer.tell(trial)

    def _compare(self, asha: Any, trial: Trial) -> None:
        """Let Ray's ASHA decide."""
        stand_in = SimpleNamespace(trial_id=str(trial.number))
        if len(trial.scores) == 1:
            asha.on_trial_add(None, stand_in)
        shown = {self.sweep.judged: trial.score, "rung": len(trial.scores)}
        if asha.on_trial_result(None, stand_in, with_resource(shown)) == "STOP":
            trial.state = "stopped"
        else:
            self._to_next_stop(trial)


def chosen(known: Trials) -> dict[str, float]:
    """The values of the best trial. If no trial has finished, those of the trial that was trained longest."""
    best = known.ranked()[0]
    return {name.rpartition(".")[2]: value for name, value in best.values.items()}


def replayed(table: Table, task: str, way: str, folder: Path, seeds: int, runs: float) -> dict[str, Any]:
    """Replay one algorithm `seeds` times, and summarise its regrets."""
    reference, _, _ = table.reference
    prior_off = np.random.default_rng(0).uniform(-1, 1, size=seeds)
    grid = GRID * (table.run_tokens + 2 * table.evaluation_tokens)
    cap = SHARE * grid
    regrets, reached, shares = [], [], []
    for seed in range(seeds):
        prior = float(MIDDLE * PRIOR_OFF ** prior_off[seed])
        rates = {"min": prior / 10, "max": prior * 10, "log": True, "points": 4}
        more: dict[str, Any] = {"budget": {"trials": 1000}, "space": {"learning_rate": rates, "warmup_ratio": [0.1]}}
        if way != "grid":  # which has four trials: four rates, and one warmup
            more["space"]["warmup_ratio"] = {"min": 0.0, "max": 0.2}
        if way == "auto":
            more |= {"budget": {"runs": runs}, "prior": {"learning_rate": prior}, "rungs": None}
        sweep, _ = with_prior(sweep_of(task, folder, seed=seed, **more, **WAYS[way]))
        replay = Replay(table, sweep, table.seeds[seed % len(table.seeds)], cap)
        values = chosen(replay.run())
        at = values["learning_rate"], values["warmup_ratio"]
        regrets.append(table.quality(*at) / reference - 1)
        reached.append(table.loss(*at, replay.data_seed, table.total_steps, False) / reference - 1)
        shares.append(replay.taken / grid)
    allowed = table.allowed_regret
    return {
        "task": task,
        "way": way,
        "seeds": seeds,
        "median_regret": round(statistics.median(regrets), 5),
        "mean_regret": round(statistics.mean(regrets), 5),
        "worst_regret": round(max(regrets), 5),
        "allowed_regret": round(allowed, 5),
        "within": round(sum(regret <= allowed for regret in regrets) / len(regrets), 3),
        "median_reached": round(statistics.median(reached), 5),
        "reached_within": round(sum(regret <= allowed for regret in reached) / len(reached), 3),
        "share_of_grid_tokens": round(max(shares), 4),
    }


def best_of_each_seed(table: Table, task: str) -> dict[str, Any]:
    """Regrets of taking the rate with the least final loss of one seed: one for each recorded seed and warmup.

    A search with one seed cannot know more. So its `within` shows how far one seed differs from the mean of the seeds.
    """
    reference = table.reference[0]
    regrets = []
    for seed, warmup in itertools.product(table.seeds, table.warmups):
        best = min(table.rates, key=lambda rate: table.loss(rate, warmup, seed, table.total_steps, False))
        regrets.append(table.quality(best, warmup) / reference - 1)
    return {
        "task": task,
        "way": "best of each seed",
        "seeds": len(table.seeds),
        "warmups": len(table.warmups),
        "median_regret": round(statistics.median(regrets), 5),
        "worst_regret": round(max(regrets), 5),
        "within": round(sum(regret <= table.allowed_regret for regret in regrets) / len(regrets), 3),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=sorted(TASKS))
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--ways", nargs="+", choices=sorted(WAYS), default=list(WAYS))
    parser.add_argument("--runs", type=float, default=3.2, help="budget of auto")
    options = parser.parse_args()
    file = DATA / f"{options.task}.jsonl"
    table = Table(options.task, [json.loads(line) for line in file.read_text().splitlines()])
    loss, rate, warmup = table.reference
    print(f"best of the table: {loss:.4f} at rate {rate:g}, warmup {warmup:g}", file=sys.stderr)
    print(json.dumps(best_of_each_seed(table, options.task)), flush=True)
    with tempfile.TemporaryDirectory(prefix="fleetune-replay-") as folder:
        for way in options.ways:
            found = replayed(table, options.task, way, Path(folder), options.seeds, options.runs)
            print(json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
