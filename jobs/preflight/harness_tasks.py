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
from jobs.run.metric_names import harness_name, is_harness, missing_metric
from jobs.spec.evaluation import SCORABLE, is_task_file
from jobs.spec.finetune import Spec


class _WithoutFunctions(yaml.SafeLoader):
    """Reads `!function module.name` as None: only rank 0 imports it."""


_WithoutFunctions.add_multi_constructor("!", lambda *_: None)


def check_harness_tasks(spec: Spec, judged: str | None = None) -> None:
    """Reject tasks that lm-eval does not know or that cannot be scored in training, and metrics that no task has.

    It takes about ten seconds if a task is named, because lm-eval reads the files of all its tasks.

    Args:
        judged: full name of the metric of a sweep of this job.

    Raises:
        SpecError: all problems.
    """
    if not spec.eval.lm_eval.tasks:
        return
    if importlib.util.find_spec("lm_eval") is None:
        raise SpecError.at(
            "eval.lm_eval", "the package lm_eval is not installed: run pip install 'fleetune[lm-eval]' on every node"
        )
    named = [task for task in spec.eval.lm_eval.tasks if not is_task_file(task)]
    files = [task for task in spec.eval.lm_eval.tasks if is_task_file(task)]
    problems = [problem for task in files if (problem := _file_problem(task))]
    manager: Any = None
    if named:
        from lm_eval.tasks import TaskManager

        manager = TaskManager()
        problems += [problem for task in named if (problem := _name_problem(task, manager))]
    if problems:
        raise SpecError.of(Mistake(problem, "eval.lm_eval.tasks") for problem in problems)
    wanted = {"checkpoint.metric_for_best_model": spec.checkpoint.best_metric, "metric": judged}
    of_tasks = {field: metric for field, metric in wanted.items() if metric is not None and is_harness(metric)}
    if not of_tasks or any(":" in name for name in spec.eval.metrics):  # a user's function may report any name
        return
    known = _known_metrics([*files, *(path for task in named for path in _single_files(task, manager))])
    if known is not None and (wrong := {field: name for field, name in of_tasks.items() if name not in known}):
        raise SpecError.of(Mistake(missing_metric(name, known), field) for field, name in wrong.items())


def _single_files(task: str, manager: Any) -> Iterator[str]:
    """Yield the files of a single task or of the tasks of a tag, or the file of a group."""
    entry = manager.task_index[task]
    if entry.kind.name == "GROUP":
        yield str(entry.yaml_path)
    else:
        yield from (path for _, path in _files(task, manager))


def _known_metrics(paths: Iterable[str]) -> set[str] | None:
    """Return the names of all metrics that tasks may report, by their files; None if the files do not tell all."""
    known = set[str]()
    for path in paths:
        metrics = _metrics_of(_read(path))
        if metrics is None:
            return None
        known |= metrics
    return known


def _metrics_of(config: dict[str, Any]) -> set[str] | None:
    """Return the names of all metrics that a task may report; None if only lm-eval or the task's code knows them."""
    metrics, filters = config.get("metric_list"), config.get("filter_list") or [{"name": "none"}]
    own = {"group", "class", "process_results"} & config.keys()
    if own or not isinstance(metrics, list) or not isinstance(filters, list):
        return None
    names: list[Any] = [one.get("metric") if isinstance(one, dict) else None for one in metrics]
    filtered: list[Any] = [one.get("name") if isinstance(one, dict) else None for one in filters]
    if not all(isinstance(name, str) for name in (*names, *filtered)):  # a function
        return None
    return {harness_name(str(config["task"]), name, one) for name in names for one in filtered}


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
