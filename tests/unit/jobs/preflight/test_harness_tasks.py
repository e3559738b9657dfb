"""Metrics of lm-eval's tasks: those that no task can report are refused before a run. Needs no lm-eval."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import SpecError
from jobs.preflight.harness_tasks import check_harness_tasks
from jobs.run.metric_names import missing_metric
from jobs.spec.finetune import Spec

pytestmark = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")
MINE = """task: mine
output_type: multiple_choice
metric_list: [{metric: acc}, {metric: acc_norm}]
"""


def spec_of(folder: Path, metric: str, task: str = MINE, **evaluation: Any) -> Spec:
    (folder / "mine.yaml").write_text(task)
    return Spec.model_validate(
        {
            "model": {"path": "/m", "task": "causal-lm"},
            "data": {"train": "/d", "eval": "/e", "format": "text"},
            "eval": {"lm_eval": {"tasks": [str(folder / "mine.yaml")]}, **evaluation},
            "checkpoint": {"metric_for_best_model": metric},
            "storage_path": "/s",
        }
    )


def test_a_metric_that_no_task_reports_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        check_harness_tasks(spec_of(tmp_path, "lm_eval_mine_ac"), judged="eval_lm_eval_min_acc_norm")
    by_field = {mistake.field: mistake.message for mistake in caught.value.mistakes}
    known = "it reports eval_lm_eval_mine_acc, eval_lm_eval_mine_acc_norm"
    assert by_field == {
        "checkpoint.metric_for_best_model": (
            f"the job reports no eval_lm_eval_mine_ac; {known}; did you mean lm_eval_mine_acc?"
        ),
        "metric": f"the job reports no eval_lm_eval_min_acc_norm; {known}; did you mean lm_eval_mine_acc_norm?",
    }


@pytest.mark.parametrize(
    ("metric", "task", "evaluation"),
    [
        ("lm_eval_mine_acc", MINE, {}),
        ("loss", MINE, {}),
        ("lm_eval_mine_acc_best", MINE + "filter_list: [{name: best, filter: [{function: take_first}]}]\n", {}),
        ("lm_eval_mine_new", MINE + "process_results: !function mine.results\n", {}),
        ("lm_eval_mine_new", MINE.replace("{metric: acc}", "{metric: !function mine.new}"), {}),
        ("lm_eval_mine_acc", "task: mine\noutput_type: multiple_choice\n", {}),
        ("lm_eval_mine_new", "class: !function mine.Task\ntask: mine\n", {}),
        ("lm_eval_mine_mean", MINE, {"metrics": ["loss", "mine:metrics"]}),
    ],
)
def test_what_a_task_or_a_function_may_report_is_never_refused(
    tmp_path: Path, metric: str, task: str, evaluation: dict[str, Any]
) -> None:
    check_harness_tasks(spec_of(tmp_path, metric, task, **evaluation))


def test_a_long_list_of_metrics_is_cut() -> None:
    said = missing_metric("eval_m7x", [f"eval_m{number}" for number in range(20)])
    assert " and 8 more; did you mean m7" in said
