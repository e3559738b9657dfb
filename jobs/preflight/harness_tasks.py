"""Looks for the tasks of lm-eval that a spec names, without their data."""

from __future__ import annotations

import importlib.util
import os
from collections import ChainMap
from collections.abc import Iterable, Iterator
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

    It takes about ten seconds if a task is named, because lm-eval reads the files of all its tasks.
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
        found = _read(path)
    except (OSError, yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        return f"{path} cannot be read as a task of lm-eval: {' '.join(str(error).split())[:300]}"
    if not {"task", "group"} & found.keys():
        return f"{path} describes no task of lm-eval: it needs `task: NAME`"
    return _output_problem(path, found)


def _read(path: str) -> dict[str, Any]:
    """Read a task's file with the files that it includes. Raises OSError, YAMLError or UnicodeDecodeError."""
    with open(path, "rb") as file:
        found = yaml.load(file, _WithoutFunctions)
    if not isinstance(found, dict):
        raise yaml.YAMLError("it is no mapping")
    included = found.pop("include", None) or []
    names = [included] if isinstance(included, str) else included
    parts = [_read(os.path.join(os.path.dirname(path), name)) for name in names]
    return dict(ChainMap(found, *reversed(parts)))


def _name_problem(task: str, manager: Any) -> str | None:
    if task not in manager.task_index:
        return f"lm-eval knows no task {task!r} (`lm-eval ls tasks` lists them){did_you_mean(task, manager.all_tasks)}"
    problems = (_output_problem(name, _read(path)) for name, path in _files(task, manager))
    return next((f"{task}: {problem}" for problem in problems if problem), None)


def _files(name: str, manager: Any) -> Iterator[tuple[str, str]]:
    """Yield the tasks of a group or tag, or a single task, with their files."""
    entry = manager.task_index.get(name)
    if entry is None:
        return
    if entry.kind.name == "TAG":
        inside: Iterable[Any] = sorted(entry.tags)
    elif entry.kind.name == "GROUP":
        tasks = (entry.cfg or {}).get("task", [])
        inside = [tasks] if isinstance(tasks, str) else tasks
    else:
        yield name, str(entry.yaml_path)
        return
    for one in inside:
        yield from _files(one if isinstance(one, str) else str(one.get("task") or one.get("group")), manager)


def _output_problem(task: str, config: dict[str, Any]) -> str | None:
    kind = config.get("output_type")
    if kind is None or kind in SCORABLE:
        return None
    return (
        f"{task} has the output type {kind}. In training, these can be scored: {', '.join(SCORABLE)}. Remove the task, "
        "and run lm-eval on the exported model"
    )
