"""Finds mistakes of a job before a worker starts. Light to import; reads files and URLs."""

from __future__ import annotations

import ast
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib.machinery import ModuleSpec
from typing import TYPE_CHECKING

from cluster.errors import DataError, InputError, Mistake, SpecError
from cluster.job_environment import JobEnvironment
from cluster.local.machine import has_gpus
from cluster.text import did_you_mean
from jobs.model_files.directory import check_model_dir, saved_dtype, too_long_rows
from jobs.planning import plan_batching, warmup_steps, worker_numbers
from jobs.preflight.harness_tasks import check_harness_tasks
from jobs.run.find import with_model_of_run
from jobs.spec.command import CommandSpec
from jobs.spec.data import OWN_FUNCTION, numbered
from jobs.spec.evaluation import METRICS
from jobs.spec.finetune import Spec, Task, Train
from jobs.spec.remedies import Forgetting
from jobs.storage import files as storage

if TYPE_CHECKING:
    from jobs.data.sources.first_records import Looked

# The best rate of LoRA is about ten times that of full fine-tuning (Tinker's cookbook, 2025); that of prompt tuning is
# up to 0.3 (arXiv 2104.08691).
_USUAL_RATES = {"full": (1e-7, 1e-2), "lora": (5e-5, 5e-3), "prompt": (1e-3, 0.5)}
_SHORTEST_RUN_S = 30.0  # a run of a small model on CPUs takes about as long
_OFFLOAD_CPUS = 4  # threads with which Adam on the host keeps up with one GPU


@dataclass(frozen=True)
class CheckedCommand:
    """The result for a spec of kind command without mistakes. Attributes: see `Validated`."""

    warnings: tuple[str, ...] = ()
    looked_at: tuple[str, ...] = ()
    not_looked_at: tuple[str, ...] = ()


@dataclass(frozen=True)
class Validated:
    """The result for a spec without mistakes.

    Attributes:
        spec: the spec, with the model of a run in place of `model.path: run:NAME`.
        warnings: settings that are allowed, but probably not meant.
        looked_at: descriptions of what was checked beside the spec.
        not_looked_at: descriptions of what could not be checked here and may be wrong.
    """

    spec: Spec
    warnings: tuple[str, ...]
    looked_at: tuple[str, ...]
    not_looked_at: tuple[str, ...]


def validate(spec: Spec, *, estimates: bool = True, judged: str | None = None) -> Validated:
    """Check batch, warmup, metrics, model directory, data and storage. Changes to the spec's working_dir.

    Args:
        estimates: also warn of what `data.seq_len` truncates, which is estimated on some samples. A run does without:
            it prepares all of the data, and then warns with exact numbers.
        judged: full name of the metric of a sweep of this job.

    Raises:
        InputError: all problems, one a line; the error has the type of the first problem.
    """
    problems = list[InputError]()
    checks: list[Callable[[Spec], object]] = [*_CHECKS, partial(check_harness_tasks, judged=judged)]
    for check in checks:
        try:
            check(spec)
        except InputError as error:
            problems.append(error)
    sources = _looked_at_sources(spec, problems)
    if problems:
        mistakes = dict.fromkeys(mistake for problem in problems for mistake in problem.mistakes)
        raise type(problems[0]).of(mistakes) from problems[0]
    spec = with_model_of_run(spec)
    seen, unseen = _model_seen(spec)
    tokens = "tokens and chat template" if _renders(spec) else "tokens"
    unseen.append(f"data: {tokens}; `fleetune data check` tries them on every record")
    warnings = [*_warnings(spec), *([] if judged is not None else _warnings_of_a_run(spec))]
    if storage.is_local(spec.model.path):
        warnings += filter(None, [too_long_rows(storage.local_path(spec.model.path), spec.data.seq_len)])
    for where, source in sources.items():
        seen.append(f"{where}: {source.words}")
        warnings += _source_warnings(spec, where, source, estimates)
        if not source.samples and not source.bad:
            unseen.append(f"{where}: the samples that your function makes (it runs when the data is prepared)")
    return Validated(spec, tuple(warnings), (*seen, f"storage: {spec.storage_path} can be written"), tuple(unseen))


def validate_command(spec: CommandSpec) -> CheckedCommand:
    """Check that the working directory is here, and look for the program. Nothing is started.

    Raises:
        SpecError: there is no such directory, or no such program in it.
    """
    folder, program = spec.working_dir, spec.command[0]
    if folder is not None and not os.path.isdir(folder):
        raise SpecError.at("working_dir", f"{folder} is not a directory here: give one that every node sees")
    seen = () if folder is None else (f"working_dir: {folder}",)
    in_folder = "/" in program and not os.path.isabs(program)
    if in_folder and folder is None:
        return CheckedCommand((), seen, (f"command: {program}, because working_dir is not given",))
    found = shutil.which(os.path.join(folder or "", program) if in_folder else program)
    if found is not None:
        return CheckedCommand((), (*seen, f"command: {found}"), ("nodes: whether the program can be started there",))
    if in_folder:
        raise SpecError.at("command", f"{program} is not a program that can be started in {folder}")
    return CheckedCommand((f"command: there is no program {program} here, and every node needs it",), seen)


def no_gpu_here(spec: Spec, home: str = "") -> str | None:
    """Explain why the spec cannot train here without a GPU, and what to write; None if it can train.

    `home`: where the spec is in that of a sweep or comparison: `base.`.
    """
    if not spec.resources.gpus_per_worker or has_gpus():
        return None
    return (
        "this machine has no GPU, and the spec asks for GPUs for each worker "
        f"({home}resources.gpus_per_worker, 1 if left out). To train on its CPUs, write "
        f"`resources: {{gpus_per_worker: 0}}` into the spec{' of the base' if home else ''}, or add "
        f"`--set {home}resources.gpus_per_worker=0`. To train on a cluster, give `--address`"
    )


def enter_working_dir(spec: Spec) -> None:
    """Change to the job's working directory, where its modules are. Raises SpecError."""
    try:
        JobEnvironment(spec.working_dir).enter()
    except OSError as error:
        raise SpecError(
            f"working_dir {spec.working_dir}: {error.strerror}. Give a directory that every node sees"
        ) from error
    if path := _in_place_of_ours(os.getcwd()):
        raise SpecError(
            f"{path} has the name of one of Fleetune's own modules, and workers would import it instead: rename it, or "
            "start from another directory (or with another working_dir)"
        )


def _in_place_of_ours(folder: str) -> str | None:
    """Return a module in this directory, the first place for imports, that has the name of one of ours."""
    for name in ("cluster", "jobs"):
        ours = os.path.dirname(os.path.dirname(str(sys.modules[name].__file__)))
        for path in (os.path.join(folder, name, "__init__.py"), os.path.join(folder, f"{name}.py")):
            if os.path.exists(path) and not os.path.samefile(folder, ours):
                return path
    return None


def check_metrics(spec: Spec) -> None:
    """Reject metrics that do not exist or are meaningless for the task. Raises SpecError."""
    problems = [problem for name in spec.eval.metrics if (problem := _metric_problem(name, spec.model.task))]
    if problems:
        raise SpecError.of(Mistake(problem, "eval.metrics") for problem in problems)


def _metric_problem(name: str, task: Task) -> str | None:
    if name in METRICS:
        tasks = METRICS[name]
        return None if task in tasks else f"{name} is for {' and '.join(tasks)}, but model.task is {task}"
    if OWN_FUNCTION.match(name):
        return own_function_problem(name)
    hint = did_you_mean(name, METRICS)
    return f"{name!r} is neither one of {', '.join(METRICS)} nor package.module:function{hint}"


def own_function_problem(name: str) -> str | None:
    """Look for package.module:function as a worker will, with the working directory on the path. It is not called."""
    module, _, function = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.util.find_spec(module)
    except Exception as error:  # packages around the module are imported, and may raise anything
        return f"cannot find {module}: {type(error).__name__}: {error} (searched from {os.getcwd()})"
    if found is None:
        return f"there is no module {module}: it must be installed, or lie under {os.getcwd()}"
    names = _top_level_names(found)
    if names is not None and function not in names:
        return f"{found.origin} has no {function}{did_you_mean(function, names)}"
    return None


def _top_level_names(module: ModuleSpec) -> set[str] | None:
    """Return the names that a module's source defines; None if its text does not show them."""
    if not module.origin or not module.origin.endswith(".py"):
        return None
    try:
        with open(module.origin, "rb") as file:
            tree = ast.parse(file.read())
    except (OSError, SyntaxError, ValueError):
        return None  # the import in a worker reports it better
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names.update(alias.asname or alias.name for alias in node.names)
    return None if "*" in names or "__getattr__" in names else names


def _looked_at_sources(spec: Spec, problems: list[InputError]) -> dict[str, Looked]:
    """Check each source, and add problems to `problems` under its name in the spec."""
    from jobs.data.sources.first_records import check_split, format_bad_records, look_at
    from jobs.data.sources.formats import Reading

    found: dict[str, Looked] = {}
    for where, source in numbered(spec.sources):
        try:
            found[where] = look_at(Reading.of(spec, source), source.path)
            wrong, _ = format_bad_records(found[where], spec.data.max_bad_fraction)
            if wrong:
                raise DataError.at(where, wrong)
            if spec.data.eval_fraction is not None and where.startswith("data.train"):
                check_split(found[where], spec.data.eval_fraction, source.path)
        except InputError as error:
            named = (one if one.field else replace(one, field=where.partition("[")[0]) for one in error.mistakes)
            problems.append(type(error).of(named))
    return found


def _source_warnings(spec: Spec, where: str, source: Looked, estimates: bool) -> Iterator[str]:
    from jobs.data.sources.first_records import cut_in_sample, format_bad_records, format_joined

    _, bad = format_bad_records(source, spec.data.max_bad_fraction)
    for warning in filter(None, (bad, format_joined(source))):
        yield f"{where}: {warning}"
    model = spec.model.path
    sampled = estimates and storage.is_local(model)
    if sampled and (cut := cut_in_sample(source.samples, model, spec.data.seq_len, where)):
        yield cut


def _model_seen(spec: Spec) -> tuple[list[str], list[str]]:
    """Describe what was checked of the model, and what was not."""
    path = spec.model.path
    if not storage.is_local(path):
        return [f"model: config.json of {path}"], [f"model: the weights and the tokenizer at {path}"]
    if os.path.isabs(storage.local_path(path)):
        return [f"model: {path}"], ["model: whether it can be trained; a run tries that before its workers start"]
    return [], [f"model: {path} is not a directory beside the spec; whether the hub has it was not checked"]


def check_formats(spec: Spec) -> None:
    """Look for functions that the user wrote, without calling them: only workers import them. Raises SpecError."""
    own = sorted(name for name in spec.formats if OWN_FUNCTION.match(name))
    problems = [Mistake(problem, "data.format") for name in own if (problem := own_function_problem(name))]
    if problems:
        raise SpecError.of(problems)


_CHECKS: tuple[Callable[[Spec], object], ...] = (
    enter_working_dir,  # first, because functions are looked up in it
    plan_batching,
    worker_numbers,
    lambda spec: spec.train.max_steps and warmup_steps(spec.train, spec.train.max_steps),
    check_metrics,
    lambda spec: check_model_dir(with_model_of_run(spec)),
    check_formats,
    lambda spec: storage.check_writable(spec.storage_path),
)


def _warmup_share(train: Train) -> float:
    """Return the warmup as a share of all steps; 0 if their number is not known yet."""
    steps = train.warmup_steps or 0.0
    if train.warmup_ratio is not None or steps < 1:
        return train.warmup_ratio or steps
    return steps / train.max_steps if train.max_steps else 0.0


def _renders(spec: Spec) -> bool:
    """Whether a chat template may write samples."""
    return bool({"chat", "instruction"} & spec.formats) or any(":" in one for one in spec.formats)


def _warnings_of_a_run(spec: Spec) -> Iterator[str]:
    """Yield settings without effect in a single run; the trials of a sweep have values and scores of their own."""
    train, forgetting = spec.train, spec.remedies.forgetting
    if train.lr_scheduler_type != "warmup_stable_decay" and train.decay_ratio != Train().decay_ratio:
        yield (
            f"train.decay_ratio ({train.decay_ratio}) has no effect with lr_scheduler_type: {train.lr_scheduler_type}. "
            "It is for warmup_stable_decay"
        )
    if spec.checkpoint.load_best_model_at_end and spec.eval.eval_steps is None:
        scored = "only the first and the last state are" if spec.eval.eval_on_start else "only the last state is"
        yield f"checkpoint.load_best_model_at_end: without eval.eval_steps, {scored} scored. Give eval.eval_steps"
    if spec.model.chat_template is not None and not _renders(spec) and not spec.eval.lm_eval.apply_chat_template:
        yield "model.chat_template has no effect: no data has the format chat or instruction"
    if forgetting.max_general_loss_increase is None and forgetting.action != Forgetting().action:
        yield (
            f"remedies.forgetting.action ({forgetting.action}) has no effect without a bound: give "
            "remedies.forgetting.max_general_loss_increase"
        )


def _warnings(spec: Spec) -> Iterator[str]:
    asked = [name for name in spec.eval.metrics if name != "loss"]
    if not spec.data.has_eval and (asked or (spec.eval.eval_steps and not spec.evaluates)):
        what = f"eval.metrics asks for {', '.join(asked)}" if asked else "eval.eval_steps is set"
        yield f"{what}, but there are no held-out samples: give data.eval or data.eval_fraction"
    longest_s = spec.queue.max_runtime_s
    if longest_s is not None and longest_s < _SHORTEST_RUN_S:
        yield (
            f"queue.max_runtime_s ({longest_s:g}) is in seconds, and includes the start of the workers and the load of "
            "the model: the job may fail before its first step"
        )
    trained_on = {source.path for source in spec.data.train}
    for source in spec.data.eval or ():
        if source.path in trained_on:
            yield f"data.eval: {source.path} is also in data.train, so its metrics do not show how well the model does"
    train = spec.train
    least, most = _USUAL_RATES[spec.method.kind]
    if not least <= train.learning_rate <= most:
        others = "" if spec.method.kind == "full" else ", far above those of full fine-tuning"
        yield (
            f"train.learning_rate ({train.learning_rate:g}) is unusual for method: {spec.method.kind}. Its best "
            f"rates are mostly between {least:g} and {most:g}{others}"
        )
    if train.lr_scheduler_type == "warmup_stable_decay" and _warmup_share(train) + train.decay_ratio > 1.0:
        warmup = f"warmup_ratio ({train.warmup_ratio})"
        if train.warmup_ratio is None:
            warmup = f"the share of warmup_steps ({_warmup_share(train):g})"
        yield f"{warmup} + decay_ratio ({train.decay_ratio}) > 1: the decay is shortened"
    model = spec.model.path
    if train.fp16 and storage.is_local(model) and saved_dtype(storage.local_path(model)) == "bfloat16":
        yield (
            "train.fp16: the model was saved in bfloat16. Its activations may be above 65,504, the largest number of "
            "fp16, and then all steps are skipped. On GPUs that have it, use train.bf16"
        )
    cpus, gpus = spec.resources.cpus_per_worker, spec.resources.gpus_per_worker
    if train.zero.offload_optimizer is not None and gpus and cpus < _OFFLOAD_CPUS:
        yield (
            "zero.offload_optimizer: the optimizer runs on the host, and Ray gives it resources.cpus_per_worker "
            f"({cpus}) threads. Set it to {_OFFLOAD_CPUS} or more, or the GPU waits for it"
        )
    if train.max_steps and spec.checkpoint.save_steps and spec.checkpoint.save_steps > train.max_steps:
        yield f"checkpoint.save_steps ({spec.checkpoint.save_steps}) is more than max_steps ({train.max_steps})"
    if train.max_steps and spec.eval.eval_steps and spec.eval.eval_steps > train.max_steps:
        yield f"eval.eval_steps ({spec.eval.eval_steps}) is more than max_steps ({train.max_steps})"
