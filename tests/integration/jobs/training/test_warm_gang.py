"""A trial on a warm gang computes what a fresh run with its spec computes, whatever the gang has trained before."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from jobs.run.checkpoints import committed_steps
from jobs.search.rules.auto import greatest_rate
from jobs.training.mailbox import Answer, GangTask
from tests.support import tiny
from tests.support.gangs import Case, case_of, run_gang, run_warm_gang

STEPS, PAUSE, MOST_GROWTH = 8, 3, 1.05
PROBED = (1e-3, 3.0)  # a small step, and one that is far too long
TRIALS: dict[str, dict[str, Any]] = {
    "first": {"learning_rate": 1e-3, "warmup_ratio": 0.1},
    "second": {"learning_rate": 5e-3, "warmup_ratio": 0.3, "weight_decay": 0.0, "adam_beta2": 0.95},
    "third": {"learning_rate": 2e-3, "lr_scheduler_type": "cosine", "max_grad_norm": 0.1, "adam_epsilon": 1e-6},
    "seed": {"seed": 11},
    "diverged": {},
    "metric": {"metrics": ("loss", "tests.support.own_metrics:failing"), "eval_on_start": True, "seed": 12},
}
FRESH = ("first", "second", "third", "seed")


@dataclasses.dataclass(frozen=True)
class Trials:
    fresh: dict[str, Case]
    warm: dict[str, Case]
    answers: dict[str, list[Answer]]
    resident_mb: list[float]


KINDS = [
    pytest.param(("gpt2", 2, "full"), id="gpt2"),
    pytest.param(("encoder", 3, "full"), id="bert"),
    pytest.param(("encoder", 3, "lora"), id="lora", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module", params=KINDS)
def trials(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trials:
    """One trial is paused and goes on while the gang holds it, another from its checkpoint after others.

    A pause includes a cool-down, after which all must be as before.

    GPT-2 has dropout, and the engine is one of ZeRO-2. BERT's head is new, and follows from the seed, as adapters do.
    """
    folder = tmp_path_factory.mktemp("warm")
    kind, stage, method = request.param
    tiny.save_model(folder / kind, kind, dropout=0.1)
    classify = kind == "encoder"
    rows = folder / "rows.jsonl"  # the last steps are those of a second epoch
    data = tiny.write_labelled(rows, 60, 3) if classify else tiny.write_text(rows, 60)
    spec = tiny.spec_of(
        folder, folder / kind, data,
        data__eval_fraction=0.1, train__max_steps=STEPS, train__max_grad_norm=0.5, train__global_batch_size=8,
        train__per_device_train_batch_size=2, eval__eval_on_start=False, train__zero__stage=stage, method=method,
        classify=classify, data__packing=False, eval__metrics=["loss", "accuracy", *(["f1"] if classify else [])],
    )  # fmt: skip
    base = case_of(folder, "gang", spec)
    fresh, warm = ({name: _case(base, name, place) for name in TRIALS} for place in ("fresh", "warm"))
    turns = [("first", None), ("second", PAUSE), ("diverged", None), ("third", PAUSE), ("third", None)]
    turns += [("seed", None), ("metric", None), ("second", None)]
    turns = [("probe", None), *turns, ("probe", None)]
    orders = [
        GangTask(action="probe", run=str(folder / "probe"), spec=base.spec, rates=PROBED)
        if name == "probe"
        else GangTask(action="train", run=warm[name].paths.root, spec=warm[name].spec, until=until, cooldown_steps=2)
        for name, until in turns
    ]
    given = run_warm_gang(folder, 2, base, orders, [warm["diverged"]])
    answers: dict[str, list[Answer]] = {name: [] for name in ("probe", *TRIALS)}
    for (name, _), answer in zip(turns, given, strict=True):
        answers[name].append(answer)
    run_gang(folder, 2, [fresh[name] for name in FRESH])
    return Trials(fresh, warm, answers, json.loads((folder / "memory.json").read_text()))


def _case(base: Case, name: str, place: str) -> Case:
    changes = dict(TRIALS[name])
    top = {"seed": changes.pop("seed")} if "seed" in changes else {}
    scores: dict[str, Any] = {field: changes.pop(field) for field in ("metrics", "eval_on_start") if field in changes}
    scoring = base.spec.eval.model_copy(update=scores)
    update = {"train": base.spec.train.model_copy(update=changes), "eval": scoring, **top}
    return dataclasses.replace(base, name=f"{place}-{name}", spec=base.spec.model_copy(update=update))


@pytest.mark.parametrize("name", FRESH)
def test_its_losses_are_those_of_a_fresh_run_to_the_last_digit(trials: Trials, name: str) -> None:
    """The trials of one gang, paused or not, leave nothing to each other: losses, gradients, samples, scores."""
    warm, fresh = trials.warm[name], trials.fresh[name]
    assert warm.record("step") == list(range(1, STEPS + 1))
    for column in ("loss", "grad_norm", "learning_rate", "chain"):
        assert warm.record(column) == fresh.record(column), column
    last = trials.answers[name][-1]
    assert (last.status, last.step, last.loss) == ("finished", STEPS, fresh.record("loss")[-1])
    assert {"eval_loss", "eval_accuracy"} <= set(last.metrics)
    assert ("eval_f1" in last.metrics) == (warm.spec.model.task == "sequence-classification")
    assert last.metrics == {score: fresh.last(score) for score in last.metrics}


@pytest.mark.parametrize("name", ["second", "third"])
def test_a_pause_has_a_score_and_a_checkpoint(trials: Trials, name: str) -> None:
    paused = trials.answers[name][0]
    assert (paused.status, paused.step, paused.total_steps) == ("paused", PAUSE, STEPS)
    assert paused.cooled["eval_loss"] > 0 and paused.metrics == {}, "scored once, after the cool-down"
    assert paused.tokens == sum(trials.fresh[name].record("tokens")[: PAUSE + 2]), "those of the cool-down too"
    assert committed_steps(trials.warm[name].paths) == [PAUSE, STEPS]


def test_the_loss_after_one_step_is_found_at_many_rates_and_leaves_nothing_behind(trials: Trials) -> None:
    first, last = trials.answers["probe"]
    assert first.status == last.status == "probed" and first.losses == last.losses
    step, *scored = trials.fresh["first"].record("tokens")[:3]
    assert first.tokens == step + round(3 * sum(scored) / 3), "a forward pass costs a third of a step"
    before, *after = first.losses
    assert before < after[-1] and after[0] < after[-1] and greatest_rate(PROBED, first.losses) == PROBED[-1]


def test_what_fails_on_every_rank_alike_is_the_trials_end_and_not_the_gangs(trials: Trials) -> None:
    (diverged,), (metric,) = trials.answers["diverged"], trials.answers["metric"]
    assert diverged.status == metric.status == "failed"
    assert (diverged.metric_failed, metric.metric_failed) == (None, "before")
    assert "never finite" in str(diverged.reason) and "own_metrics:failing failed" in str(metric.reason)


def test_its_memory_stays_flat(trials: Trials) -> None:
    later = trials.resident_mb[3:]
    assert max(later) < MOST_GROWTH * trials.resident_mb[2], trials.resident_mb
