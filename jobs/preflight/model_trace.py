"""Traces one training step of a model from its config.json, for `jobs.planning.memory`.

No weights are read and nothing is computed. Passes of two and three rows give the bytes of any larger micro-batch. Deep
models are traced with few layers (see `jobs.planning.layers`), and models that compute token by token with short rows
(see `short_rows`).
"""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from cluster.imports import without_collections
from jobs.planning.layers import LAYER_COUNTS, Depth, Line, deepened, depth_of, second_period
from jobs.planning.memory import ModelTrace, Moment
from jobs.planning.precision import Precision
from jobs.preflight.dry_run import built_empty
from jobs.preflight.short_rows import STEPS, NotAParabolaError, lengthened, lengths_for
from jobs.preflight.traced_pass import (
    FakeModel,
    TracedPass,
    bytes_of,
    fake_model,
    traced_pass,
    with_adapter,
    without_advice,
)
from jobs.preflight.tracker import Event, TooManyOperationsError
from jobs.spec.finetune import Spec
from jobs.training.model.adapters import new_modules
from jobs.training.model.load import DTYPES, empty_model, lacking_and_unused, model_config

_ROWS = (1, 2, 3)
Counts = tuple[tuple[str, int], ...]  # numbers of layers by field of the configuration


@dataclass(frozen=True)
class Stack:
    """A list of layers, and the field of the configuration that says how many it has."""

    field: str
    depth: Depth


def trace_model(spec: Spec, model_dir: str, precision: Precision, on_gpu: bool = False) -> ModelTrace:
    """Trace one step of the spec's model, as `ModelTracer.trace` does."""
    return ModelTracer(spec, model_dir, precision, on_gpu).trace(spec)


class ModelTracer:
    """Traces steps of one model. What is built for one strategy serves the others: adapters alone take seconds."""

    def __init__(self, spec: Spec, model_dir: str, precision: Precision, on_gpu: bool = False) -> None:
        """Build nothing yet.

        Args:
            model_dir: a directory with config.json.
            on_gpu: see `FakeModel`.
        """
        self._spec, self._model_dir, self._precision, self._on_gpu = spec, model_dir, precision, on_gpu
        self._built = dict[tuple[Counts, bool], FakeModel]()

    @without_advice()
    @without_collections()  # a trace has up to a million objects; the last reference to a tensor still frees it
    def trace(self, spec: Spec) -> ModelTrace:
        """Trace one step with rows of `seq_len` tokens.

        Args:
            spec: that of the tracer, with any `train.gradient_checkpointing` and `train.zero.stage`.

        Raises:
            DataError: transformers cannot build the model.
            Exception: what torch raises for a step that depends on data.
        """
        model, stacks = self._whole, self._stacks
        traced = functools.partial(_traced, spec, self._precision, model, functools.partial(self._fake, spec), stacks)
        with contextlib.suppress(TooManyOperationsError):
            return traced(functools.partial(traced_pass, spec, limited=True))
        for step in STEPS:
            with contextlib.suppress(NotAParabolaError):
                short = traced(functools.partial(_lengthened, spec, step))
                tokens = lengths_for(spec.data.seq_len, step)[-1]
                note = f"rows of up to {tokens} tokens were traced, because this model computes one token after another"
                return replace(short, note="; ".join(filter(None, (short.note, note))))
        return traced(functools.partial(traced_pass, spec))

    @functools.cached_property
    def _whole(self) -> Any:
        """The model with all layers and the adapter of its method."""
        base = built_empty(self._spec, self._model_dir)
        return with_adapter(self._spec, base, self._model_dir, self._new)

    @functools.cached_property
    def _new(self) -> set[str]:
        if self._spec.method.kind == "full":
            return set()
        return new_modules(lacking_and_unused(self._spec, self._model_dir)[0])

    @functools.cached_property
    def _stacks(self) -> tuple[Stack, ...]:
        return _stacks(self._whole, self._shortened)

    def _shortened(self, field: str, layers: int) -> Any:
        config = _with_layers(model_config(self._spec, self._model_dir), ((field, layers),))
        short = empty_model(self._spec, self._model_dir, config=config)
        return with_adapter(self._spec, short, self._model_dir, self._new)

    def _fake(self, spec: Spec, counts: Counts) -> FakeModel:
        """Return the model with these numbers of layers. Strategies with the same checkpointing share it."""
        key = counts, spec.train.gradient_checkpointing
        if key not in self._built:
            config = _with_layers(model_config(spec, self._model_dir), counts)
            dtype = DTYPES[self._precision]
            self._built[key] = fake_model(spec, self._model_dir, self._new, dtype, config, self._on_gpu)
        return self._built[key]


def _lengthened(spec: Spec, step: int, model: FakeModel, rows: int) -> TracedPass:
    def trace(seq_len: int) -> TracedPass:
        return traced_pass(spec.with_value("data.seq_len", seq_len), model, rows, detailed=True)

    return lengthened(trace, spec.data.seq_len, step)


def _traced(
    spec: Spec,
    precision: Precision,
    model: Any,
    built: Callable[[Counts], FakeModel],
    stacks: Sequence[Stack],
    trace: Callable[..., TracedPass],
) -> ModelTrace:
    """Trace the model. `built` builds it with these numbers of layers, or with all; `trace` runs a pass of one."""
    depths = [stack.depth for stack in stacks if stack.depth.repeats >= 1]
    if depths:
        few = built(tuple((stack.field, stack.depth.deep) for stack in stacks if stack.depth in depths))
        first = trace(few, _ROWS[0])
        if all(_layers_in(first, depth) == set(range(depth.deep)) for depth in depths):
            passes = [first, *(trace(few, rows) for rows in _ROWS[1:])]
            return _trace_of_whole(spec, precision, model, few.model, passes, depths)
    # Another field than the usual one may decide about the number of layers.
    known = stacks and not depths
    note = None if known else "all layers were traced: the depth of this type of model cannot be changed"
    passes = [trace(built(()), rows) for rows in _ROWS]
    return _trace(spec, precision, model, passes, _lines(passes), _lines(passes[:1]), note)


def _layers_in(traced: TracedPass, depth: Depth) -> set[int | None]:
    return {depth.layer_of(event.place) for event in traced.events} - {None}


def _trace_of_whole(
    spec: Spec, precision: Precision, model: Any, few: Any, passes: Sequence[TracedPass], depths: Sequence[Depth]
) -> ModelTrace:
    """Return the trace of the model from passes of one with few layers."""
    lines, single, first = _lines(passes), _lines(passes[:1]), passes[0]
    for depth in depths:
        lines, single = deepened(lines, depth), deepened(single, depth)
        places = [event.place for event in first.events]
        begin, end = (first.events[number] for number in second_period(places, depth))
        buffers = [buffer for name, buffer in few.named_buffers() if depth.is_repeated(name)]
        first = replace(
            first,
            flops=first.flops + depth.repeats * (end.flops - begin.flops),
            operations=first.operations + depth.repeats * (end.operations - begin.operations),
            buffer_bytes=first.buffer_bytes + depth.repeats * bytes_of(buffers),
        )
    note = f"{sum(depth.deep for depth in depths)} of {sum(depth.layers for depth in depths)} layers were traced"
    return _trace(spec, precision, model, [first, *passes[1:]], lines, single, note)


def _stacks(model: Any, shortened: Callable[[str, int], Any]) -> tuple[Stack, ...]:
    """Find the lists of layers and how they repeat. `shortened` builds the model with fewer layers for a field."""
    config, found = model.config.get_text_config(), list[Stack]()
    fields = [name for name in LAYER_COUNTS if isinstance(getattr(config, name, None), int)]
    for field in fields:
        layers = getattr(config, field)
        lists = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.ModuleList) and len(module) == layers
        }
        lists = {name: module for name, module in lists.items() if name not in [one.depth.prefix for one in found]}
        if len(fields) > 1 and layers > 1 and lists:  # an encoder and a decoder may have as many layers
            short = dict[str, Any]()
            with contextlib.suppress(Exception):  # model classes may raise anything for another depth
                short = dict(shortened(field, layers - 1).named_modules())
            lists = {name: module for name, module in lists.items() if len(short.get(name, ())) == layers - 1}
        for name, module in itertools.islice(lists.items(), 1):
            shapes = [tuple((key, tuple(value.shape)) for key, value in one.named_parameters()) for one in module]
            per_layer = [value for value in vars(config).values() if isinstance(value, list) and len(value) == layers]
            found.append(Stack(field, depth_of(name, list(zip(shapes, *per_layer, strict=True)))))
    return tuple(found)


def _with_layers(config: Any, counts: Counts) -> Any:
    """Return the configuration with fewer layers; lists with an entry for each layer are cut."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    for field, layers in counts:
        for name, value in vars(text).items():
            if isinstance(value, list) and len(value) == getattr(text, field):
                setattr(text, name, value[:layers])
        setattr(text, field, layers)
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
