"""Pages about plans, runs and the fields of specs. Text only; nothing is decided here."""

from __future__ import annotations

import datetime
import json
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from cluster.text import duration, first_line, long_duration, many, when_written
from jobs.planning import plan_batching
from jobs.preflight.validate import Validated
from jobs.run.metric_names import metric_words
from jobs.run.outcome import Outcome
from jobs.run.paths import JobPaths
from jobs.run.record import how_to_go_on
from jobs.run.remedies import next_time, remedy_words
from jobs.run.summary import RunDetails, RunSummary
from jobs.spec.checking.fields import section_model, spec_fields
from jobs.spec.data import Source, source_words
from jobs.spec.finetune import SCHEMA_VERSION, Spec
from jobs.spec.queue import Kind, OnEnd
from jobs.spec.sweep import Dimension
from orchestrator.pages.tables import columns

Row = tuple[str, str]


def table(rows: Iterable[Row], indent: str = "") -> str:
    """Align two columns."""
    rows = list(rows)
    width = max((len(left) for left, _ in rows), default=0)
    return "\n".join(f"{indent}{left.ljust(width)}  {right}".rstrip() for left, right in rows)


def plan(spec: Spec) -> dict[str, str]:
    """Describe what a spec would run, as far as is known without reading the data. Raises SpecError."""
    train, data, resources = spec.train, spec.data, spec.resources
    batching = plan_batching(spec)
    empty = batching.places - batching.rows
    batch = (
        f"rows per step = {batching.rows} ({batching.per_device} per worker and pass x {batching.accumulation} "
        f"accumulation x {many(batching.num_workers, 'worker')}{f', {empty} places empty' if empty else ''})"
    )
    packed = ", packed" if spec.packed else ""
    held_out = f"{data.eval_fraction:g} of the training samples" if data.eval_fraction else "none"
    if data.eval:
        held_out = sources_words(data.eval)
    device = f"GPU{f' {resources.accelerator_type}' if resources.accelerator_type else ''}"
    number = f"{resources.min_workers}-" if resources.min_workers is not None else ""
    workers = f"{number}{resources.num_workers} x ({'1 ' + device if resources.gpus_per_worker else 'no GPU'}, "
    return {
        "model": f"{spec.model.path} ({spec.model.task}{f', {spec.num_labels} classes' if spec.num_labels else ''})",
        "method": f"{spec.method.kind} fine-tuning, ZeRO stage {train.zero.stage}",
        "data": f"{sources_words(data.train)} ({data.format}, {data.seq_len} tokens{packed})",
        "held out": held_out,
        "batch": batch,
        "length": _length_words(spec),
        "rate": f"{train.learning_rate:g}, {train.lr_scheduler_type}{_warmup_words(spec)}",
        "metrics": ", ".join(spec.eval.metrics),
        "workers": f"{workers}{resources.cpus_per_worker} CPU)",
        "storage": spec.storage_path,
    }


def validated_page(facts: Mapping[str, str], found: Validated, gpu_note: str | None) -> str:
    """Format the output of `fleetune validate` if there is no problem.

    Args:
        gpu_note: why a run on this machine would be refused; the spec may be for a cluster.
    """
    lines = [table(facts.items()), *(f"looked at      {one}" for one in found.looked_at)]
    lines += [f"not looked at  {one}" for one in found.not_looked_at]
    lines += [f"warning: {one}" for one in found.warnings]
    if gpu_note:
        lines.append(f"note: {gpu_note}")
    return "\n".join([*lines, "ok: no problem was found in what was looked at"])


def sources_words(sources: Iterable[Source]) -> str:
    return ", ".join(map(source_words, sources))


def prepared_page(facts: Mapping[str, Any], spec: Spec) -> str:
    """Format the output of `fleetune data prepare`."""
    rows = [("prepared at", str(facts["root"])), ("records", f"{facts['records']:,}")]
    if facts["bad_rows"]:
        rows.append(("set aside", f"{facts['bad_rows']:,} bad rows, listed in bad_rows.jsonl of their source"))
    for name in ("train", "eval"):
        if name in facts:
            counts = facts[name]
            density = counts["tokens"] / (counts["rows"] * spec.data.seq_len)
            filled = f", {density:.1%} full" if spec.packed else ""
            said = f"{counts['samples']:,} samples in {counts['rows']:,} rows{filled}"
            rows.append((name, f"{said}, {counts['tokens']:,} tokens, {counts['targets']:,} targets"))
    return table(rows)


def is_terminal() -> bool:
    return sys.stdout.isatty()


def terminal_width() -> int:
    """Return the columns of the terminal; 100 if stdout is not one."""
    return shutil.get_terminal_size((100, 24)).columns if is_terminal() else 100


def _length_words(spec: Spec) -> str:
    steps, epochs = spec.train.max_steps, spec.train.num_train_epochs or 3.0
    if steps is not None:
        return many(steps, "step")
    return "1 epoch" if epochs == 1 else f"{epochs:g} epochs"


def _warmup_words(spec: Spec) -> str:
    ratio, steps = spec.train.warmup_ratio, spec.train.warmup_steps
    if ratio is None and steps is not None and steps < 1:
        ratio = steps
    if ratio:
        return f", {ratio:.0%} warmup"
    return f", {steps:g} steps of warmup" if steps else ""


def numbers(metrics: Mapping[str, float]) -> str:
    """Format metrics: `train loss 0.4312  accuracy 0.830 (majority class 0.5)`."""
    return "  ".join(metric_words(metrics))


def ending(outcome: Outcome, root: str | None, labels: Sequence[str] = (), *, told: bool = False) -> str:
    """Format the table at the end of `fleetune run`.

    Args:
        told: whether the run's last line has given the reason, the logs and the command to resume.
    """
    rows = [("status", f"{outcome.status} after {many(outcome.step, 'step')}")]
    if outcome.reason and not told:
        rows.append(("reason", outcome.reason))
    rows += _before_and_after(outcome.metrics_before, outcome.metrics, outcome.evaluated_step)
    rows += class_rows(outcome.confusion, labels)
    if outcome.model_path:
        rows.append(("model", outcome.model_path))
    if root:
        rows.append(("run", root))
    if root and not (told and outcome.reason):
        rows.append(("logs", f"{root}/logs"))
        if how := how_to_go_on(JobPaths(root), outcome):
            rows.append(("resume", how))
    return table(rows)


def _before_and_after(before: Mapping[str, float], after: Mapping[str, float], step: int | None) -> list[Row]:
    """Return rows with the metrics before training and of the last evaluation, with its step if known."""
    evaluated = numbers({name: value for name, value in after.items() if name.startswith("eval_")})
    rows = [("before", numbers(before)), ("after" if step is None else f"after step {step}", evaluated)]
    if before and not evaluated:
        rows[1] = ("after", "not evaluated since")
    if "loss" in after:
        rows.append(("train loss", f"{after['loss']:.4g}"))
    return [row for row in rows if row[1]]


def class_rows(confusion: Sequence[Sequence[int]] | None, labels: Sequence[str]) -> list[Row]:
    """Return F1, precision and recall of each class, and what it is predicted as; empty without a confusion matrix."""
    if not confusion:
        return []
    names = list(labels) if len(labels) == len(confusion) else [str(number) for number in range(len(confusion))]
    predicted = [sum(column) for column in zip(*confusion, strict=True)]
    rows = []
    for number, (name, row) in enumerate(zip(names, confusion, strict=True)):
        hits, true = row[number], sum(row)
        f1 = 2 * hits / max(true + predicted[number], 1)
        scores = f"precision {hits / max(predicted[number], 1):.3f}  recall {hits / max(true, 1):.3f}  f1 {f1:.3f}"
        taken_for = ", ".join(f"{count:,} as {names[other]}" for other, count in enumerate(row) if count)
        rows.append((f"class {name}", f"{scores}  ({true:,} samples: {taken_for or 'none'})"))
    return rows


def runs_table(runs: list[RunSummary], now: datetime.datetime) -> str:
    head = ("RUN", "STATUS", "STARTED", "STEP", "METRICS")
    rows = [(run.name, status_words(run), _ago(run.started_at, now), str(run.step), _metrics_of(run)) for run in runs]
    return columns(head, rows)


def _metrics_of(run: RunSummary) -> str:
    """Format the metrics, with the step of the evaluation if training has gone on since."""
    earlier = run.evaluated_step is not None and run.evaluated_step != run.step
    return numbers(run.metrics) + (f"  (evaluated after step {run.evaluated_step})" if earlier else "")


def status_words(run: RunSummary) -> str:
    """Format the status: `running`, `succeeded`, `lost (12m00s silent)`."""
    return f"lost ({duration(run.silent_s)} silent)" if run.status == "lost" and run.silent_s else run.status


def _ago(at: datetime.datetime | None, now: datetime.datetime) -> str:
    if at is None:
        return "?"
    return f"{long_duration((now - at).total_seconds())} ago"


def run_page(details: RunDetails) -> str:
    """Format the page of `fleetune show`."""
    run, spec = details.summary, details.spec
    steps = f"{run.step}/{details.total_steps}" if details.total_steps else str(run.step)
    rows = [("run", run.name), ("status", status_words(run))]
    if run.reason:
        rows.append(("reason", run.reason))
    job = spec.get("base", spec)  # in a sweep, the base job of its trials
    rows += [("model", str(job.get("model", {}).get("path"))), ("data", _data_of(job))]
    if "base" in spec:
        rows.append(("trials", f"fleetune sweep leaderboard {details.paths['run']}"))
    rows += [("step", steps), *_before_and_after(details.metrics_before, run.metrics, run.evaluated_step)]
    rows += class_rows(details.confusion, job.get("data", {}).get("labels") or ())
    rows += [("remedy", remedy_words(one)) for one in details.remedies]
    if (change := next_time(details.remedies)) is not None:
        rows.append(("next time", change))
    rows += [(f"{name} at", path) for name, path in details.paths.items()]
    if details.resume:
        rows.append(("resume", details.resume))
    parts = [table(rows)]
    if details.events:
        parts.append("last events:\n" + table((_event_row(event) for event in details.events), "  "))
    if details.log_tail:
        parts.append("end of " + details.log_tail)
    return "\n\n".join(parts)


def _data_of(spec: Mapping[str, Any]) -> str:
    """Return the paths of the training data, from a spec.json of any release."""
    train = spec.get("data", {}).get("train")
    if isinstance(train, list):
        return ", ".join(str(one.get("path")) if isinstance(one, dict) else str(one) for one in train)
    return str(train)


def _event_row(event: Mapping[str, Any]) -> Row:
    message = first_line(str(event.get("message", "")))  # the last event also has paths, which are shown above
    return when_written(str(event.get("at", ""))), f"{event.get('kind', '')}: {message}"


def reference(kind: Kind = "finetune") -> str:
    """Describe every field of a kind of spec, section by section."""
    lines = [f"Spec of kind {kind}, schema version {SCHEMA_VERSION}. (*) marks what must be given.", ""]
    for name, info in spec_fields(kind).items():
        depth = "  " * name.count(".")
        key = name.rpartition(".")[2]
        if section_model(info):
            lines.append(f"{depth}{key}:{' (*)' if info.is_required() else ''}  # {info.description}")
            continue
        lines.append(f"{depth}{key}: {_facts(info)}")
        lines.append(f"{depth}    {info.description}")
    return "\n".join(lines)


def _facts(info: FieldInfo) -> str:
    default = "(*)" if info.is_required() else f"default {_default(info)}"
    bounds = [
        f"{sign} {getattr(bound, name)}" for bound in info.metadata for name, sign in _BOUNDS if hasattr(bound, name)
    ]
    return "; ".join([_type_name(info.annotation), *bounds, default])


def _default(info: FieldInfo) -> str:
    value = info.get_default(call_default_factory=True, validated_data={})
    return "none" if value is None else json.dumps(value)


def _type_name(annotation: Any) -> str:
    """Name a type in words: `whole number`, `one of a, b`, `list of text`."""
    if get_origin(annotation) is Literal:
        choices = get_args(annotation)
        return str(choices[0]) if len(choices) == 1 else "one of " + ", ".join(str(choice) for choice in choices)
    if get_origin(annotation) is Annotated:
        return _type_name(get_args(annotation)[0])
    if get_origin(annotation) is tuple:
        return f"list of {_type_name(get_args(annotation)[0])}"
    if get_origin(annotation) is dict:
        return "fields with their values" if get_args(annotation)[1] is Dimension else "names with text"
    if type(None) in get_args(annotation):
        return " or ".join(_type_name(one) for one in get_args(annotation) if one is not type(None))
    return _TYPE_NAMES.get(annotation, str(annotation))


_TYPE_NAMES = {
    Source: "sources",
    OnEnd: "webhook or command",
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
}
_BOUNDS = (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
