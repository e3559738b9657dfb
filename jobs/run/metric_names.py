"""Formats metrics for people. Light to import: the training loop, the terminal and the queue's pages share it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from cluster.text import did_you_mean

ACCURACY: Final = "eval_accuracy"
# Share of held-out samples in the most frequent class: the accuracy of a model that always predicts that class.
MAJORITY: Final = "eval_majority_share"
# Loss for each token of general text, which shows what the model forgets. Named as Hugging Face names the metrics of
# an evaluation on several data sets.
GENERAL_LOSS: Final = "eval_general_loss"
LOSS: Final = "eval_loss"
_NAMED: Final = 12  # metrics that a message lists
_NEGLIGIBLE: Final = 1e-3  # relative to the metric


def general_name(name: str) -> str:
    """Return the name of a held-out metric on general text: `eval_general_loss` for `eval_loss`."""
    return f"eval_general_{name.removeprefix('eval_')}"


def is_general(name: str) -> bool:
    return name.startswith("eval_general_")


def harness_name(task: str, metric: str, filtered: str = "none") -> str:
    """Return the name of a metric of one of lm-eval's tasks. `filtered`: the task's filter of the answers."""
    return f"eval_lm_eval_{task}_{metric}" if filtered == "none" else f"eval_lm_eval_{task}_{metric}_{filtered}"


def is_harness(name: str) -> bool:
    return name.startswith("eval_lm_eval_")


def missing_metric(metric: str, reported: Iterable[str]) -> str:
    """Explain that evaluations do not report a metric, with the names that they report."""
    names = sorted(reported)
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    known = ", ".join(names[:_NAMED]) or "nothing"
    near = did_you_mean(metric.removeprefix("eval_"), (name.removeprefix("eval_") for name in names))
    return f"the job reports no {metric}; it reports {known}{more}{near}"


def general_increase(before: Mapping[str, float], after: Mapping[str, float]) -> float | None:
    """Return how much the loss on general text has risen, as a share of its first value; None if it is not known."""
    if GENERAL_LOSS not in after or not before.get(GENERAL_LOSS):
        return None
    return after[GENERAL_LOSS] / before[GENERAL_LOSS] - 1


def format_trade(before: Mapping[str, float], after: Mapping[str, float]) -> str | None:
    """State the gain of the task against the change on general text; None without the latter and without tasks.

    The text is `held-out loss 3.1 -> 1.92 (-38.1%), general loss 3.21 -> 3.4 (+5.9%)`; tasks of lm-eval follow.
    """
    losses = {"held-out loss": LOSS, "general loss": GENERAL_LOSS}
    tasks = {name.removeprefix("eval_lm_eval_"): name for name in after if is_harness(name)}
    pairs = {
        words: (before[name], after[name])
        for words, name in (losses | tasks).items()
        if name in before and name in after
    }
    if pairs.keys() <= {"held-out loss"}:
        return None
    return ", ".join(
        f"{words} {old:.4g} -> {new:.4g}" + (f" ({new / old - 1:+.1%})" if old else "")
        for words, (old, new) in pairs.items()
    )


def metric_items(metrics: Mapping[str, Any], shape: str = "{:.4g}", prefix: str = "") -> Iterator[str]:
    """Yield a text such as `accuracy 0.822 (majority class 0.5)` for each metric that has a value.

    Args:
        prefix: text before the name of a held-out metric.
    """
    together = ACCURACY in metrics and metrics.get(MAJORITY) is not None
    for name, value in metrics.items():
        if value is None or (together and name == MAJORITY):
            continue
        shown = "train loss" if name == "loss" else prefix + name.removeprefix("eval_")
        baseline = f" (majority class {shape.format(metrics[MAJORITY])})" if together and name == ACCURACY else ""
        yield f"{shown} {shape.format(value)}{baseline}"


def is_worse(now: float, before: float, *, greater_is_better: bool) -> bool:
    """Whether a metric is worse than before.

    A change of up to 0.1 % does not count: it also appears if the model learns nothing.
    """
    worse = now < before if greater_is_better else now > before
    return worse and abs(now - before) > _NEGLIGIBLE * abs(before)
