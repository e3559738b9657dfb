"""Output about specs and runs, as text: `validate`, `run`, `runs`, `show`, `spec` and `data prepare`."""

from __future__ import annotations

import datetime
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import JsonValue
from pydantic.fields import FieldInfo

from cluster.text import compact, duration, first_line, long_duration, many, when_written
from jobs.planning import plan_batching
from jobs.preflight.validate import CheckedCommand, Validated
from jobs.run.metric_names import format_trade, general_increase, metric_items
from jobs.run.outcome import Outcome, Status
from jobs.run.paths import JobPaths
from jobs.run.record import how_to_go_on
from jobs.run.remedies import trouble_rows
from jobs.run.summary import RunDetails, RunSummary
from jobs.spec.checking.fields import section_model, spec_fields
from jobs.spec.compare import ComparedMethod
from jobs.spec.data import Source, format_source
from jobs.spec.finetune import SCHEMA_VERSION, Spec
from jobs.spec.load import SPEC_MODELS
from jobs.spec.queue import Kind, OnEnd
from jobs.spec.space import Dimension
from orchestrator.pages.plan import format_plan
from orchestrator.pages.tables import columns, printable_lines, table

Row = tuple[str, str | None]  # `table` leaves out a row with None
_NOTHING: Mapping[str, str] = MappingProxyType({})
_WARMUP = ("train.warmup_ratio", "train.warmup_steps")
_BATCH = ("global_batch_size", "global_batch_tokens", "per_device_train_batch_size", "gradient_accumulation_steps")
# A sweep may vary these fields. Each is in a line of the plan. The learning rate has its own line.
_LINE_OF = {
    **{f"train.{name}": "batch" for name in _BATCH},
    **dict.fromkeys(("train.zero.stage", "lora.rank"), "method"),
}
_USUAL_BOUND = 0.02  # relative increase of the loss on general text above which mixing is suggested, without a bound


def plan(spec: Spec, varied: Mapping[str, str] = _NOTHING) -> dict[str, str]:
    """Describe what a spec would run, as far as is known without reading the data. Raises SpecError.

    Args:
        varied: values of the fields that a sweep varies, by dotted name, to show instead of the spec's.
    """
    train, data, resources = spec.train, spec.data, spec.resources
    batching = plan_batching(spec)
    empty = batching.places - batching.rows
    batch = (
        f"rows per step = {batching.rows} ({batching.per_device} per worker and pass x {batching.accumulation} "
        f"accumulation x {many(batching.num_workers, 'worker')}"
        f"{f', {empty} of {batching.places} places stay empty' if empty else ''})"
    )
    packed = ", packed" if spec.packed else ""
    held_out = f"{data.eval_fraction:g} of the training samples" if data.eval_fraction else "none"
    if data.eval:
        held_out = format_sources(data.eval)
    device = f"GPU{f' {resources.accelerator_type}' if resources.accelerator_type else ''}"
    number = f"{resources.min_workers}-" if resources.min_workers is not None else ""
    workers = f"{number}{resources.num_workers} x ({'1 ' + device if resources.gpus_per_worker else 'no GPU'}, "
    found = {
        "model": f"{spec.model.path} ({spec.model.task}{f', {spec.num_labels} classes' if spec.num_labels else ''})",
        "method": f"{_format_method(spec)}, ZeRO stage {train.zero.stage}",
        "data": f"{format_sources(data.train)} ({data.format}, {data.seq_len} tokens{packed})",
        "held out": held_out,
        **({"general text": format_sources(spec.eval.general)} if spec.eval.general else {}),
        **({"lm-eval": ", ".join(spec.eval.lm_eval.tasks)} if spec.eval.lm_eval.tasks else {}),
        "batch": batch,
        "length": _format_length(spec),
        "rate": _format_rate(spec, varied),
        "metrics": ", ".join(spec.eval.metrics),
        "workers": f"{workers}{resources.cpus_per_worker} CPU)",
        "storage": spec.storage_path,
    }
    for name, values in varied.items():
        if (line := _LINE_OF.get(name)) is not None:
            found[line] += f"; varies: {name} {values}"
    return found


def _format_rate(spec: Spec, varied: Mapping[str, str]) -> str:
    """Format `0.001, linear, 10% warmup`, or for a sweep `1e-05..0.001 (log), linear, warmup_ratio 0..0.2`."""
    train, warmup = spec.train, next((name for name in _WARMUP if name in varied), None)
    rate = varied.get("train.learning_rate", f"{train.learning_rate:g}")
    words = _format_warmup(spec) if warmup is None else f", {warmup.removeprefix('train.')} {varied[warmup]}"
    return f"{rate}, {varied.get('train.lr_scheduler_type', train.lr_scheduler_type)}{words}"


def _format_method(spec: Spec) -> str:
    if spec.method.kind == "lora":
        return f"LoRA of rank {spec.lora.rank} for {', '.join(spec.lora.target_modules)}"
    if spec.method.kind == "prompt":
        return f"a prompt of {many(spec.prompt.num_virtual_tokens, 'virtual token')}"
    return "full fine-tuning"


def validated_page(facts: Mapping[str, str], found: Validated | CheckedCommand, gpu_note: str | None = None) -> str:
    """Format the output of `fleetune validate` for a valid spec.

    Args:
        gpu_note: why a run on this machine would be refused; the spec may be for a cluster.
    """
    lines = [table(facts.items()), *(f"checked      {one}" for one in found.looked_at)]
    lines += [f"not checked  {one}" for one in found.not_looked_at]
    lines += [f"warning: {one}" for one in found.warnings]
    if gpu_note:
        lines.append(f"note: {gpu_note}")
    return "\n".join([*lines, "ok: the checks found no problem"])


def format_sources(sources: Iterable[Source]) -> str:
    return ", ".join(map(format_source, sources))


def prepared_page(facts: Mapping[str, Any], spec: Spec) -> str:
    """Format the output of `fleetune data prepare`."""
    rows = [("prepared at", str(facts["root"])), ("records", f"{facts['records']:,}")]
    if facts["bad_rows"]:
        rows.append(("set aside", f"{many(facts['bad_rows'], 'bad record')}, listed in bad_rows.jsonl of their source"))
    for name in ("train", "eval", "general"):
        if name in facts:
            counts = facts[name]
            density = counts["tokens"] / (counts["rows"] * spec.data.seq_len)
            filled = f", {density:.1%} full" if spec.packed else ""
            said = f"{many(counts['samples'], 'sample')} in {many(counts['rows'], 'row')}{filled}"
            rows.append((name, f"{said}, {many(counts['tokens'], 'token')}, {many(counts['targets'], 'target')}"))
    return table(rows)


def _format_length(spec: Spec) -> str:
    steps, epochs = spec.train.max_steps, spec.train.num_train_epochs or 3.0
    if steps is not None:
        return many(steps, "step")
    return "1 epoch" if epochs == 1 else f"{epochs:g} epochs"


def _format_warmup(spec: Spec) -> str:
    ratio, steps = spec.train.warmup_ratio, spec.train.warmup_steps
    if ratio is None and steps is not None and steps < 1:
        ratio = steps
    if ratio:
        return f", {ratio:.0%} warmup"
    return f", {steps:g} steps of warmup" if steps else ""


def numbers(metrics: Mapping[str, float]) -> str:
    """Format metrics: `train loss 0.4312  accuracy 0.830 (majority class 0.5)`."""
    return "  ".join(metric_items(metrics))


def ending(
    outcome: Outcome,
    root: str | None,
    labels: Sequence[str] = (),
    *,
    told: bool = False,
    bound: float | None = None,
) -> str:
    """Format the table at the end of `fleetune run`.

    Args:
        bound: remedies.forgetting.max_general_loss_increase.
        told: whether the run has already printed the reason, the logs and the command to resume.
    """
    untold = root if not (told and outcome.reason) else None
    return table(
        [
            ("status", f"{outcome.status} after {many(outcome.step, 'step')}"),
            ("reason", None if told else outcome.reason or None),
            *_before_and_after(outcome, outcome.metrics, outcome.evaluated_step),
            *class_rows(outcome.confusion, labels),
            ("forgetting", _mixing(outcome, outcome.metrics, bound, root) if outcome.model_path else None),
            ("model", outcome.model_path or None),
            ("run", root or None),
            ("logs", f"{untold}/logs" if untold else None),
            ("resume", how_to_go_on(JobPaths(untold), outcome) if untold else None),
        ]
    )


def _before_and_after(of: Outcome | RunDetails, after: Mapping[str, float], step: int | None) -> list[Row]:
    """Return rows with the metrics before training, of the last evaluation and of the exported checkpoint.

    Args:
        after: metrics of the last evaluation.
        step: the step of that evaluation, if known.
    """
    before, exported = of.metrics_before, f"the checkpoint of step {of.exported_step}: {numbers(of.exported_metrics)}"
    name = "after" if step is None else f"after step {step}"
    evaluated = numbers({key: value for key, value in after.items() if key.startswith("eval_")})
    if before and not evaluated:
        name, evaluated = "after", "not evaluated since"
    return [
        ("before", numbers(before) or None),
        (name, evaluated or None),
        ("train loss", f"{after['loss']:.4g}" if "loss" in after else None),
        ("exported", None if of.exported_step is None else exported),
        ("trade-off", format_trade(before, of.exported_metrics or after)),
    ]


def _mixing(of: Outcome | RunDetails, after: Mapping[str, float], bound: float | None, root: str | None) -> str | None:
    """Suggest to mix the exported model with its base, if its loss on general text exceeds the bound."""
    risen = general_increase(of.metrics_before, of.exported_metrics or after)
    if root is None or risen is None or risen <= (_USUAL_BOUND if bound is None else bound):
        return None
    command = f"fleetune export {shlex.quote(root)} --to DIR --base-weight 0.3"
    return f"the loss on general text rose by {risen:.1%}. To mix the model with its base: {command}"


def class_rows(confusion: Sequence[Sequence[int]] | None, labels: Sequence[str]) -> list[Row]:
    """Return precision, recall, F1 and the predictions for each class; empty without a confusion matrix."""
    if not confusion:
        return []
    names = list(labels) if len(labels) == len(confusion) else [str(number) for number in range(len(confusion))]
    predicted = [sum(column) for column in zip(*confusion, strict=True)]
    rows = list[Row]()
    for number, (name, row) in enumerate(zip(names, confusion, strict=True)):
        hits, true = row[number], sum(row)
        f1 = 2 * hits / max(true + predicted[number], 1)
        scores = f"precision {hits / max(predicted[number], 1):.3f}  recall {hits / max(true, 1):.3f}  f1 {f1:.3f}"
        taken_for = ", ".join(f"{count:,} as {names[other]}" for other, count in enumerate(row) if count)
        rows.append((f"class {name}", f"{scores}  ({many(true, 'sample')}: {taken_for or 'none'})"))
    return rows


def runs_table(runs: list[RunSummary], now: datetime.datetime) -> str:
    head = ("RUN", "STATUS", "STARTED", "STEP", "METRICS")
    rows = [(run.name, format_status(run), _ago(run.started_at, now), str(run.step), _metrics_of(run)) for run in runs]
    return columns(head, rows)


def _metrics_of(run: RunSummary) -> str:
    """Format the metrics, with the step of the evaluation if training has continued since."""
    earlier = run.evaluated_step is not None and run.evaluated_step != run.step
    return numbers(run.metrics) + (f"  (evaluated after step {run.evaluated_step})" if earlier else "")


def format_status(run: RunSummary) -> str:
    """Format the status: `running`, `succeeded`, `lost (12m00s silent)`."""
    return f"lost ({duration(run.silent_s)} silent)" if run.status == "lost" and run.silent_s else run.status


def _ago(at: datetime.datetime | None, now: datetime.datetime) -> str:
    return "?" if at is None else f"{long_duration((now - at).total_seconds())} ago"


def run_page(details: RunDetails) -> str:
    """Format the page of `fleetune show`."""
    run, spec = details.summary, details.spec
    job = spec.get("base", spec)  # in a sweep, the base job of its trials
    trials = f"fleetune sweep leaderboard {shlex.quote(details.paths['run'])}"
    if "methods" in spec:
        methods = ", ".join(str(one.get("name")) for one in spec["methods"])
        kind: list[Row] = [("methods", methods), ("trials", f"{trials}/methods/NAME")]
    else:
        method = job.get("method", {}).get("kind", "full")
        if method != "full" and details.trainable is not None and details.parameters is not None:
            method += f", trainable {compact(details.trainable)} of {compact(details.parameters)} parameters"
        steps = f"{run.step}/{details.total_steps}" if details.total_steps else str(run.step)
        kind = [("method", None if method == "full" else method), ("trials", trials if "base" in spec else None)]
        kind.append(("step", steps))
    mixing = None
    if run.status == Status.SUCCEEDED:
        bound = job.get("remedies", {}).get("forgetting", {}).get("max_general_loss_increase")
        mixing = _mixing(details, run.metrics, bound, details.paths["run"])
    rows = [
        ("run", run.name),
        ("status", format_status(run)),
        ("reason", run.reason or None),
        ("model", str(job.get("model", {}).get("path"))),
        ("data", _data_of(job)),
        *kind,
        # The metrics of a comparison are those of its best method, which its table has.
        *(() if "methods" in spec else _before_and_after(details, run.metrics, run.evaluated_step)),
        *class_rows(details.confusion, job.get("data", {}).get("labels") or ()),
        ("forgetting", mixing),
        *trouble_rows(details.troubles),
        ("plan", None if details.plan is None else format_plan(details.plan)),
        *((f"{name} at", path) for name, path in details.paths.items()),
        ("resume", details.resume or None),
    ]
    events = table(map(_event_row, details.events), "  ")
    log = details.log_tail and printable_lines(f"end of {details.log_tail}")
    return "\n\n".join(filter(None, (table(rows), events and f"last events:\n{events}", log)))


def _data_of(spec: Mapping[str, Any]) -> str:
    """Return the paths of the training data, from a spec.json of any release."""
    train = spec.get("data", {}).get("train")
    if isinstance(train, list):
        return ", ".join(str(one.get("path")) if isinstance(one, dict) else str(one) for one in train)
    return str(train)


def _event_row(event: Mapping[str, Any]) -> Row:
    message = first_line(str(event.get("message", "")))  # the last event also has paths, which the page shows already
    return when_written(str(event.get("at", ""))), f"{event.get('kind', '')}: {message}"


def reference(kind: Kind = "finetune") -> str:
    """Describe every field of a kind of spec, section by section."""
    lines = [f"Spec of kind {kind}, schema version {SCHEMA_VERSION}. (*) marks fields that must be given.", ""]
    for name, info in spec_fields(SPEC_MODELS[kind]).items():
        depth = "  " * name.count(".")
        key = name.rpartition(".")[2]
        if section_model(info):
            lines.append(f"{depth}{key}:{' (*)' if info.is_required() else ''}  # {info.description}")
            continue
        lines.append(f"{depth}{key}: {_facts(info)}")
        lines.append(f"{depth}    {info.description}")
    return "\n".join(lines)


def _facts(info: FieldInfo) -> str:
    value = info.get_default(call_default_factory=True, validated_data={})
    default = "(*)" if info.is_required() else f"default {'none' if value is None else json.dumps(value)}"
    # The bounds of `Count | None` are in `Count`.
    parts = [info, *(field for part in get_args(info.annotation) for field in getattr(part, "__metadata__", ()))]
    found = [bound for part in parts for bound in getattr(part, "metadata", ())]
    bounds = [f"{sign} {getattr(bound, name)}" for bound in found for name, sign in _BOUNDS if hasattr(bound, name)]
    return "; ".join([_type_name(info.annotation), *bounds, default])


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
        return "fields with their values" if get_args(annotation)[1] in (Dimension, JsonValue) else "names with text"
    if type(None) in get_args(annotation):
        return " or ".join(_type_name(one) for one in get_args(annotation) if one is not type(None))
    return _TYPE_NAMES.get(annotation, str(annotation))


_TYPE_NAMES = {
    Source: "sources",
    ComparedMethod: "methods",
    OnEnd: "webhook or command",
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
}
_BOUNDS = (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
