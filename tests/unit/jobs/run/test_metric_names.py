"""Metrics in words: the gain of the task against the change on general text."""

from __future__ import annotations

from jobs.run.metric_names import format_trade, general_increase, general_name, harness_name, is_general, is_worse

BEFORE = {"eval_loss": 3.0, "eval_general_loss": 4.0, "eval_general_perplexity": 54.6}


def test_metrics_of_general_text_are_named_as_hugging_face_names_those_of_several_data_sets() -> None:
    assert general_name("eval_loss") == "eval_general_loss"
    assert is_general("eval_general_perplexity") and not is_general("eval_loss")


def test_the_gain_of_the_task_stands_beside_the_change_on_general_text() -> None:
    after = {"eval_loss": 1.5, "eval_general_loss": 4.2, "loss": 1.4}
    assert format_trade(BEFORE, after) == "held-out loss 3 -> 1.5 (-50.0%), general loss 4 -> 4.2 (+5.0%)"
    del after["eval_loss"]
    assert format_trade(BEFORE, after) == "general loss 4 -> 4.2 (+5.0%)", "general text without held-out rows"


def test_the_increase_is_a_share_of_the_first_value() -> None:
    assert general_increase(BEFORE, {"eval_general_loss": 5.0}) == 0.25
    assert general_increase(BEFORE, {"eval_loss": 1.0}) is general_increase({}, {"eval_general_loss": 5.0}) is None


def test_without_general_text_nothing_is_said_of_it() -> None:
    assert format_trade({"eval_loss": 3.0}, {"eval_loss": 1.5}) is None
    assert format_trade(BEFORE, {"eval_loss": 1.5}) is None


def test_the_trade_off_names_tasks_of_lm_eval_with_both_values() -> None:
    before = {"eval_loss": 3.0, harness_name("arc_easy", "acc"): 0.5, harness_name("new", "acc"): 0.5}
    after = {"eval_loss": 1.5, harness_name("arc_easy", "acc"): 0.45}
    assert format_trade(before, after) == "held-out loss 3 -> 1.5 (-50.0%), arc_easy_acc 0.5 -> 0.45 (-10.0%)"


def test_a_model_that_has_learned_nothing_is_not_called_worse() -> None:
    assert not is_worse(0.692957, 0.692949, greater_is_better=False)
    assert is_worse(0.71, 0.69, greater_is_better=False) and not is_worse(0.69, 0.71, greater_is_better=False)
    assert is_worse(0.69, 0.71, greater_is_better=True) and not is_worse(0.0, 0.0, greater_is_better=True)
