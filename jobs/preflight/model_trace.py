"""Traces one training step of a model from its config.json, for `jobs.planning.memory`.

No weights are read and nothing is computed. Passes of two and three rows give the bytes of any larger micro-batch. Deep
models are traced with few layers (see `jobs.planning.layers`), and models that compute token by token with short rows
(see `short_rows`).
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from jobs.planning.layers import Depth, Line, deepened, depth_of
from jobs.planning.memory import ModelTrace, Moment
from jobs.planning.precision import Precision
from jobs.preflight.dry_run import built_empty
from jobs.preflight.short_rows import STEPS, NotAParabolaError, lengthened, lengths_for
from jobs.preflight.traced_pass import FakeModel, TracedPass, fake_model, traced_pass, with_adapter, without_advice
from jobs.preflight.tracker import Event, TooManyOperationsError
from jobs.spec.finetune import Spec
from jobs.training.model.adapters import new_modules
from jobs.training.model.load import DTYPES, lacking_and_unused, model_config

_ROWS = (1, 2, 3)


@without_advice()
def trace_model(spec: Spec, model_dir: str, precision: Precision, on_gpu: bool = False) -> ModelTrace:
    """Trace one step of the spec's model with rows of `seq_len` tokens.

    Args:
        model_dir: a directory with config.json.
        on_gpu: see `traced_pass`.

    Raises:
        DataError: transformers cannot build the model.
        Exception: what torch raises for a step that depends on data.
    """
    base = built_empty(spec, model_dir)
    new = set() if spec.method.kind == "full" else new_modules(lacking_and_unused(spec, model_dir)[0])
    model, config = with_adapter(spec, base, model_dir, new), model_config(spec, model_dir)
    depth = _depth(model)
    build = functools.partial(fake_model, spec, model_dir, new, DTYPES[precision], on_gpu=on_gpu)

    @functools.cache
    def built(layers: int | None) -> FakeModel:
        return build(config if depth is None or layers is None else _with_layers(config, depth, layers))

    traced = functools.partial(_traced, spec, precision, model, built, depth)
    with contextlib.suppress(TooManyOperationsError):
        return traced(functools.partial(traced_pass, spec, limited=True))
    for step in STEPS:
        with contextlib.suppress(NotAParabolaError):
            short = traced(functools.partial(_lengthened, spec, step))
            tokens = lengths_for(spec.data.seq_len, step)[-1]
            note = f"rows of up to {tokens} tokens were traced, because this model computes one token after another"
            return replace(short, note="; ".join(filter(None, (short.note, note))))
    return traced(functools.partial(traced_pass, spec))


def _lengthened(spec: Spec, step: int, model: FakeModel, rows: int, to_logits: bool = False) -> TracedPass:
    def trace(seq_len: int) -> TracedPass:
        return traced_pass(spec.with_value("data.seq_len", seq_len), model, rows, to_logits, detailed=True)

    return lengthened(trace, spec.data.seq_len, step)


def _traced(
    spec: Spec,
    precision: Precision,
    model: Any,
    built: Callable[[int | None], FakeModel],
    depth: Depth | None,
    trace: Callable[..., TracedPass],
) -> ModelTrace:
    """Trace the model. `built` builds it with fewer layers, or with all of them (None); `trace` runs a pass of one."""
    shallow = [] if depth is None or depth.repeats < 1 else _shallow(trace, built(depth.shallow), depth)
    if depth is None or not shallow:
        known = depth is not None and depth.repeats < 1
        note = None if known else "all layers were traced: the depth of this type of model cannot be changed"
        passes = [trace(built(None), rows) for rows in _ROWS]
        return _trace(spec, precision, model, passes, _lines(passes), _lines(passes[:1]), note)
    deep = [trace(built(depth.deep), rows) for rows in _ROWS]
    lines = deepened(_lines(shallow), _lines(deep), depth)
    single = deepened(_lines(shallow[:1]), _lines(deep[:1]), depth)
    sums = {
        name: getattr(deep[0], name) + depth.repeats * (getattr(deep[0], name) - getattr(shallow[0], name))
        for name in ("flops", "operations", "buffer_bytes")
    }
    note = f"{depth.deep} of {depth.layers} layers were traced"
    return _trace(spec, precision, model, [replace(deep[0], **sums), *deep[1:]], lines, single, note)


def _depth(model: Any) -> Depth | None:
    """Find the list of layers and how they repeat; None if it is not as long as the configuration."""
    config = model.config.get_text_config()
    layers = getattr(config, "num_hidden_layers", None)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == layers:
            shapes = [tuple((key, tuple(value.shape)) for key, value in one.named_parameters()) for one in module]
            per_layer = [value for value in vars(config).values() if isinstance(value, list) and len(value) == layers]
            return depth_of(name, list(zip(shapes, *per_layer, strict=True)))
    return None


def _shallow(trace: Callable[..., TracedPass], model: FakeModel, depth: Depth) -> list[TracedPass]:
    """Trace the fewest layers up to the logits; empty if another setting than the usual one decides about the depth."""
    first = trace(model, _ROWS[0], to_logits=True)
    found = {depth.layer_of(event.place) for event in first.events} - {None}
    if len(found) != depth.shallow:
        return []
    return [first, *(trace(model, rows, to_logits=True) for rows in _ROWS[1:])]


def _with_layers(config: Any, depth: Depth, layers: int) -> Any:
    """Return the configuration with fewer layers; lists with an entry for each layer are cut."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    for name, value in vars(text).items():
        if isinstance(value, list) and len(value) == depth.layers:
            setattr(text, name, value[:layers])
    text.num_hidden_layers = layers
    return config


def _lines(passes: Sequence[TracedPass]) -> tuple[Line, ...]:
    """Return the events of the first pass, or of all others, split into a fixed part and one for each row."""
    first, *others = passes
    if not others:
        return tuple(_line_of(event, (event.live, 0), (event.peak, 0)) for event in first.events)
    two, three = (traced.events for traced in others)
    if [(event.kind, event.place) for event in two] != [(event.kind, event.place) for event in three]:
        raise RuntimeError("the modules of this model run in an order that depends on the number of rows")
    return tuple(_line(*pair) for pair in zip(two, three, strict=True))


def _line(two: Event, three: Event) -> Line:
    live, peak = three.live - two.live, three.peak - two.peak
    return _line_of(two, (two.live - 2 * live, live), (two.peak - 2 * peak, peak))


def _line_of(event: Event, live: tuple[int, int], peak: tuple[int, int]) -> Line:
    return Line(event.kind, event.place, event.parameters, live, peak)


def _trace(
    spec: Spec,
    precision: Precision,
    model: Any,
    passes: Sequence[TracedPass],
    lines: Sequence[Line],
    single: Sequence[Line],
    note: str | None,
) -> ModelTrace:
    named = dict(model.named_parameters())
    number_of = {name: number for number, name in enumerate(named)}
    last = passes[-1]
    return ModelTrace(
        parameters=sum(parameter.numel() for parameter in named.values()),
        trained=sum(parameter.numel() for parameter in named.values() if parameter.requires_grad),
        sizes=tuple(parameter.numel() for parameter in named.values()),
        trains=tuple(parameter.requires_grad for parameter in named.values()),
        decays=tuple(parameter.dim() >= 2 for parameter in named.values()),
        moments=_moments(lines, number_of),
        moments_of_one_row=_moments(single, number_of),
        buffer_bytes=passes[0].buffer_bytes,
        logits_bytes_per_row=passes[1].logits_bytes - passes[0].logits_bytes,
        logits_per_row=passes[1].logits - passes[0].logits,
        vocabulary=last.vocabulary,
        loss_bytes_per_logit=last.loss_bytes_per_logit,
        flops_per_row=passes[0].flops,
        operations=passes[0].operations,
        gradient_checkpointing=spec.train.gradient_checkpointing,
        precision=precision,
        seq_len=spec.data.seq_len,
        note=note,
    )


def _moments(lines: Sequence[Line], number_of: dict[str, int]) -> tuple[Moment, ...]:
    return tuple(
        Moment(line.kind, tuple(number_of[name] for name in line.parameters), *line.live, *line.peak) for line in lines
    )
