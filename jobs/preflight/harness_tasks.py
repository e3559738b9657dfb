"""Looks for the tasks of lm-eval that a spec names, without their data."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import yaml

from cluster.errors import Mistake, SpecError
from cluster.text import did_you_mean
from jobs.spec.evaluation import SCORABLE, is_task_file
from jobs.spec.finetune import Spec


class _WithoutFunctions(yaml.SafeLoader):
    """Reads `!function module.name` as None: only rank 0 imports it."""


_WithoutFunctions.add_multi_constructor("!", lambda *_: None)


def check_harness_tasks(spec: Spec) -> None:
    """Reject tasks that lm-eval does not know or that cannot be scored in training. Raises SpecError.

    It takes some seconds if a task is named, because lm-eval reads the files of all its tasks.
    """
    if not spec.eval.lm_eval.tasks:
        return
    if importlib.util.find_spec("lm_eval") is None:
        raise SpecError.at(
            "eval.lm_eval", "the package lm_eval is not installed: run pip install 'fleetune[lm-eval]' on every node"
        )
    named = [task for task in spec.eval.lm_eval.tasks if not is_task_file(task)]
    problems = [problem for task in spec.eval.lm_eval.tasks if is_task_file(task) and (problem := _file_problem(task))]
    if named:
        from lm_eval.tasks import TaskManager

        manager = TaskManager()
        problems += [problem for task in named if (problem := _name_problem(task, manager))]
    if problems:
        raise SpecError.of(Mistake(problem, "eval.lm_eval.tasks") for problem in problems)


def _file_problem(path: str) -> str | None:
    if not os.path.isfile(path):
        return f"{path} is not a file. Give a file that every node sees, or the name of a task"
    try:
        with open(path, "rb") as file:
            found = yaml.load(file, _WithoutFunctions)
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        return f"{path} cannot be read as a task of lm-eval: {' '.join(str(error).split())[:300]}"
    if not isinstance(found, dict) or not {"task", "group"} & found.keys():
        return f"{path} describes no task of lm-eval: it needs `task: NAME`"
    return _output_problem(path, found)


def _name_problem(task: str, manager: Any) -> str | None:
    if task not in manager.task_index:
        return f"lm-eval knows no task {task!r} (`lm-eval ls tasks` lists them){did_you_mean(task, manager.all_tasks)}"
    return _output_problem(task, manager.task_index[task].cfg or {})


def _output_problem(task: str, config: dict[str, Any]) -> str | None:
    kind = config.get("output_type")
    if kind is None or kind in SCORABLE:
        return None
    return (
        f"{task} has the output type {kind}, in which the model writes texts. In training, tasks of these types can be "
        f"scored: {', '.join(SCORABLE)}"
    )
