"""What a run forgets is measured and bounded: on two workers, and the same after an interruption."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from jobs.data.order.digest_chain import chain_of, from_hex, row_digests
from jobs.data.order.stream import step_plan
from jobs.run.checkpoints import committed_steps, read_commit
from jobs.storage.journal import Record, read_journal
from tests.integration.jobs.training.test_checkpoint_faults import assert_exported
from tests.support import tiny
from tests.support.gangs import Case, case_of, run_gang

STEPS, EVERY, BOUND = 40, 4, 0.05
INTERRUPTED_AT = 18


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """All runs in one gang: its start costs seconds. A model with random weights forgets how to write numbers."""
    folder = tmp_path_factory.mktemp("forgetting")
    model, text = tiny.save_model(folder / "llama", "llama"), tiny.write_text(folder / "text.jsonl", 400)
    draw, numbers = random.Random(0), folder / "numbers.jsonl"
    replay = folder / "replay.jsonl"
    for file, count in ((numbers, 30), (replay, 200)):
        lines = ["".join(draw.choices("0123456789", k=draw.randrange(20, 60))) for _ in range(count)]
        file.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))

    def case(name: str, bound: float | None = None, action: str = "lower_learning_rate", **changes: Any) -> Case:
        sources = [{"path": str(text), "weight": 0.99}, {"path": str(replay), "weight": 0.01, "replay": True}]
        spec = tiny.spec_of(
            folder, model, text, data__train=sources if action == "raise_replay" else str(text),
            **{"train__max_steps": STEPS, "train__warmup_ratio": 0.5, **changes}, train__learning_rate=1e-2,
            train__global_batch_size=8, train__per_device_train_batch_size=4, data__eval_fraction=0.1,
            eval={"general": str(numbers), "eval_steps": EVERY, "eval_on_start": False},
            checkpoint__metric_for_best_model="loss",
            remedies__forgetting={"max_general_loss_increase": bound, "action": action},
        )  # fmt: skip
        return case_of(folder, name, spec)

    every = [
        case("unbounded"), case("bounded", BOUND), case("interrupted", BOUND), case("stopped", BOUND, "stop"),
        case("nothing within", 1e-6, "stop"), case("replayed", BOUND, "raise_replay"),
        case("replay interrupted", BOUND, "raise_replay"),
        case("worse again", 0.012, train__max_steps=12, train__warmup_ratio=0.0),
    ]  # fmt: skip
    unbounded, bounded, interrupted, *stopped, replayed, replay_interrupted, worse_again = every
    first_halves = [dataclasses.replace(one, stop_at=INTERRUPTED_AT) for one in (interrupted, replay_interrupted)]
    exported = frozenset(one.name for one in [bounded, *stopped, replayed, worse_again])
    cases = [unbounded, bounded, *stopped, replayed, worse_again, *first_halves, interrupted, replay_interrupted]
    run_gang(folder, 2, cases, with_export=exported)
    return {one.name: one for one in every}


def scores(case: Case, name: str = "eval_general_loss") -> dict[int, float]:
    """A score by step; of a step that was computed again, the newest."""
    return {one["step"]: one[name] for one in read_journal(case.paths.metrics) if name in one}


def newest(case: Case, column: str) -> dict[int, Any]:
    return {one["step"]: one[column] for one in read_journal(case.paths.metrics)}


def acts(case: Case) -> list[Record]:
    told = [event["data"] for event in read_journal(case.paths.events) if event["kind"] == "remedy"]
    return [data for data in told if data["remedy"] == "forgetting"]


def assert_best_is_exported(case: Case) -> None:
    """The exported model is that of the least held-out loss within the bound, over all tries."""
    commit = read_commit(case.paths, committed_steps(case.paths)[-1])
    known = [(case.paths, commit.best), (case.paths.set_aside, commit.set_aside)]
    paths, best = min(((of, one) for of, one in known if one is not None), key=lambda one: one[1].score)
    bound = case.spec.remedies.forgetting.max_general_loss_increase or 0.0
    within = [
        one["eval_loss"]
        for one in read_journal(case.paths.metrics)
        if one.get("eval_general_loss", math.inf) <= (1 + bound) * base_of(case)
    ]
    assert best.score == min(within)
    assert_exported(case, best.step, paths)


def base_of(case: Case) -> float:
    """The loss on general text before training, as the run's last checkpoint keeps it."""
    return read_commit(case.paths, committed_steps(case.paths)[-1]).metrics_before["eval_general_loss"]


def test_the_first_value_is_the_loss_of_the_base_model_for_each_token_of_general_text(cases: dict[str, Case]) -> None:
    case = cases["unbounded"]
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(case.spec.model.path).eval()
    split = case.prepared.split("general")
    total, targets = 0.0, 0
    for row in split.read_rows(np.arange(len(split))).to_pylist():
        for ids in np.split(np.array(row["input_ids"]), np.cumsum(row["lengths"])[:-1]):
            with torch.no_grad():
                tokens = torch.from_numpy(ids).long()[None]
                total += float(model(tokens, labels=tokens).loss) * (len(ids) - 1)
            targets += len(ids) - 1
    assert targets == int(split.index.num_targets.sum())
    assert base_of(case) == pytest.approx(total / targets, rel=1e-5)
    (told, *later) = [event["data"] for event in read_journal(case.paths.events) if event["kind"] == "evaluated"]
    assert told["step"] == 0 and set(told["metrics"]) == {"eval_general_loss", "eval_general_perplexity"}
    assert [one["step"] for one in later] == list(range(EVERY, STEPS + 1, EVERY)) == list(scores(case))
    assert {"eval_loss", "eval_general_loss"} <= set(later[0]["metrics"])


def test_without_a_bound_the_loss_on_general_text_rises_past_it_and_the_task_is_learned(cases: dict[str, Case]) -> None:
    case = cases["unbounded"]
    assert scores(case)[STEPS] > (1 + BOUND) * base_of(case) and not acts(case)
    assert scores(case, "eval_loss")[STEPS] < 0.8 * scores(case, "eval_loss")[EVERY]


def test_past_the_bound_the_run_goes_back_to_where_there_is_room_and_continues_with_half_the_rate(
    cases: dict[str, Case],
) -> None:
    case, unbounded = cases["bounded"], cases["unbounded"]
    lowered = [act for act in acts(case) if act["stage"] == "lower_learning_rate"]
    first = lowered[0]
    within = [step for step, loss in scores(unbounded).items() if loss <= (1 + BOUND) * base_of(case)]
    has_room = scores(unbounded)[within[-1]] <= (1 + BOUND / 2) * base_of(case)
    assert first["step"] == within[-1] + EVERY, "the task's loss falls until then"
    assert first["to_step"] == (within[-1] if has_room else 0)
    assert first["general_loss"] == pytest.approx(scores(unbounded)[first["step"]], rel=1e-6)
    back = first["to_step"]
    for step, loss in newest(unbounded, "loss").items():
        if step <= back + 1:
            assert newest(case, "loss")[step] == pytest.approx(loss, abs=1e-6)
    after = [record for record in read_journal(case.paths.metrics) if record["step"] == back + 1]
    assert after[1]["learning_rate"] == pytest.approx(after[0]["learning_rate"] / 2)
    assert [act["number"] for act in lowered] == list(range(1, len(lowered) + 1))


def test_the_exported_model_is_the_best_one_within_the_bound(cases: dict[str, Case]) -> None:
    for name in ("bounded", "stopped"):
        assert_best_is_exported(cases[name])
    bounded, stopped = (
        read_commit(cases[name].paths, max(scores(cases[name]))).best for name in ("bounded", "stopped")
    )
    assert bounded is not None and stopped is not None
    assert bounded.score < 0.9 * stopped.score, "the lower rate learns more of the task within the bound"


def test_a_run_that_is_to_stop_ends_at_the_first_evaluation_past_the_bound(cases: dict[str, Case]) -> None:
    case = cases["stopped"]
    (act,) = acts(case)
    last = max(scores(case))
    assert act["stage"] == "stop" and act["step"] == last < STEPS and act["to_step"] == last - EVERY
    assert max(newest(case, "loss")) == last
    assert "lower train.learning_rate" in act["advice"]


def test_if_nothing_is_within_the_bound_the_last_state_is_exported_and_the_run_says_so(cases: dict[str, Case]) -> None:
    case = cases["nothing within"]
    (act,) = acts(case)
    assert act["to_step"] is None and "no evaluation was within the bound" in act["effect"]
    assert_exported(case, act["step"])


def test_past_the_bound_the_run_trains_more_often_on_the_sources_for_replay(cases: dict[str, Case]) -> None:
    case = cases["replayed"]
    raised = [act for act in acts(case) if act["stage"] == "raise_replay"]
    shares = [3 / 102, 9 / 108, 27 / 126]
    assert raised and [act["replay_share"] for act in raised] == pytest.approx(shares[: len(raised)])
    assert [act["number"] for act in raised] == list(range(1, len(raised) + 1))
    commit = read_commit(case.paths, committed_steps(case.paths)[-1])
    assert commit.replay_raises[-1].times == len(raised) and commit.rate_cuts == 0
    assert commit.replay_raises[-1].step == raised[-1]["to_step"]
    assert len(commit.history.losses) == STEPS - raised[-1]["to_step"], "none of other rows, with which losses jump"
    split = case.prepared.split("train")
    plan = step_plan(case.spec, split, commit.replay_raises)
    assert from_hex(commit.chain) == chain_of(plan, row_digests(split.index.sample_ids), commit.step)
    last = plan.rows_of_steps(raised[-1]["to_step"], STEPS)
    assert np.mean(last >= split.rows_of_sources[0]) == pytest.approx(shares[len(raised) - 1], abs=4 / len(last))
    assert_best_is_exported(case)


def test_the_best_state_of_before_a_new_beginning_is_exported_if_no_later_one_is_better(cases: dict[str, Case]) -> None:
    """The second try has half the rate of the first, and no time to learn as much."""
    case = cases["worse again"]
    assert [act["to_step"] for act in acts(case)][:1] == [0]
    commit = read_commit(case.paths, committed_steps(case.paths)[-1])
    assert commit.set_aside is not None
    assert commit.best is None or commit.best.score > commit.set_aside.score
    assert_best_is_exported(case)
    (taken,) = [event["message"] for event in read_journal(case.paths.events) if event["data"].get("phase") == "best"]
    assert taken == f"taking the best checkpoint, of step {commit.set_aside.step} before the run began again"


@pytest.mark.parametrize(("name", "like"), [("interrupted", "bounded"), ("replay interrupted", "replayed")])
def test_an_interrupted_run_makes_the_same_decisions_and_has_the_same_losses(
    cases: dict[str, Case], name: str, like: str
) -> None:
    interrupted, undisturbed = cases[name], cases[like]
    events = read_journal(interrupted.paths.events)
    resumed = [event["data"]["step"] for event in events if event["data"].get("phase") == "resumed"]
    assert resumed == [INTERRUPTED_AT]
    assert acts(interrupted)[0]["step"] < INTERRUPTED_AT < acts(interrupted)[1]["step"], "after the first act"
    assert acts(interrupted) == acts(undisturbed)
    for column in ("loss", "learning_rate", "chain"):
        assert list(newest(interrupted, column).values()) == pytest.approx(
            list(newest(undisturbed, column).values()), abs=1e-6
        )
    assert scores(interrupted) == pytest.approx(scores(undisturbed), abs=1e-6)
    evaluated = [event["data"]["step"] for event in events if event["kind"] == "evaluated"]
    assert evaluated.count(0) == 1, "the base model is measured once"
