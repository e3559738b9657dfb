"""Runs one forward and backward pass of a model without data, and records its events.

The pass is that of the training loop: the same model class, batch, loss and checkpointing. Under torch's FakeTensorMode
every operator returns tensors with the right shape and no data, so a pass of any model takes milliseconds and no
memory. A dispatch mode sees every result, and a finalizer sees the end of its storage.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Final, cast
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from jobs.data.prepared import IGNORE_INDEX, ROW_SCHEMA
from jobs.planning.memory import EventKind
from jobs.spec.finetune import Spec
from jobs.training.loop import loss
from jobs.training.model.batch import Batch, collate, model_logits
from jobs.training.model.load import attention_arguments, model_class, set_pad_token, without_flash_attention

# The registry counts attention of GPUs only. The operator of CPUs has the same first arguments.
_ON_CPU: Final = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_COUNTED_AS: Final = {_ON_CPU: torch.ops.aten._scaled_dot_product_flash_attention}
_PIECES, _TRACED_PIECES = loss._pieces, 3
_PAD = 0  # no size depends on the token that fills a row


@dataclass(frozen=True)
class Event:
    """One event of a step, and the bytes of living tensors around it. Parameters and buffers are not counted."""

    kind: EventKind
    parameters: tuple[str, ...]  # names: those of the module that begins or ends, or that of the gradient
    live: int
    peak: int  # most bytes since the event before


class Tracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of every storage that an operator returns, from its first appearance to its end.

    Attributes:
        flops: number for matrix products and attention so far.
        operations: number of operators that have returned a new storage; views do not count.
    """

    def __init__(self, uncounted: Iterable[torch.Tensor]) -> None:
        """Make a tracker that does not count the storages of the tensors `uncounted`."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.events: list[Event] = []
        self.live = self.peak = self.flops = self.operations = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in uncounted}

    def note(self, kind: EventKind, *parameters: str) -> None:
        self.events.append(Event(kind, parameters, self.live, self.peak))
        self.peak = self.live

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        count = flop_registry.get(_COUNTED_AS.get(packet, packet))
        if count is not None:
            self.flops += int(count(*args, **(kwargs or {}), out_val=out))
        elif packet.__name__ == "grouped_mm_fallback":  # experts: (tokens, k) times (experts, k, n)
            self.flops += 2 * args[0].numel() * args[1].shape[-1]
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._register(tensor.untyped_storage())
        return out

    def _register(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.operations += 1
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._end, key, size)

    def _end(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


@dataclass(frozen=True)
class TracedPass:
    """The events of one pass, and facts that the events do not contain."""

    events: tuple[Event, ...]
    buffer_bytes: int
    logits: int  # elements
    vocabulary: int  # logits of one target
    logits_bytes: int
    flops: int  # of the forward pass
    operations: int  # of the forward pass, without views


def with_adapter(spec: Spec, model: Any, model_dir: str, new: Collection[str]) -> Any:
    """Add what the spec's method trains, as `load_model` does; for `new` see `adapted`."""
    if spec.method.kind == "full":
        return model
    from jobs.training.model.adapters import adapted

    # `Module.to` fails for tensors without data. PEFT calls it for a device, which is the same, and for a dtype, which
    # `adapted` sets.
    with mock.patch.object(torch.nn.Module, "to", lambda module, *_, **__: module), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        return adapted(spec, model, model_dir, new)


def traced_pass(
    spec: Spec,
    model_dir: str,
    new: Collection[str],
    dtype: torch.dtype,
    config: Any,
    rows: int,
    to_logits: bool = False,
) -> TracedPass:
    """Trace a micro-batch of `rows` rows of `seq_len` tokens, to the end or to the logits; for `new` see `adapted`.

    Raises:
        Exception: what transformers raises for a model that it cannot build, or torch for a step that depends on data.
    """
    from transformers.initialization import no_init_weights

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode, no_init_weights():
        model = model_class(spec).from_config(config, dtype=dtype, **attention_arguments(without_flash_attention(spec)))
        model.tie_weights()
        model = with_adapter(spec, model, model_dir, new)
    set_pad_token(model.config, _PAD)
    if spec.train.gradient_checkpointing:
        model.config.get_text_config().use_cache = False  # transformers would set it with a warning
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # it has another name in transformers 6
            model.gradient_checkpointing_enable({"use_reentrant": True})
    model.train()
    batch = _batch(spec, mode, rows)
    tracker = Tracker([*model.parameters(), *model.buffers()])
    _watch(model, tracker)
    with _without_data(spec), mode, tracker:
        logits = model_logits(model, batch, spec.model.task)
        tracker.note("logits")
        flops, operations = tracker.flops, tracker.operations
        shape, size = logits.shape, logits.untyped_storage().nbytes()
        if not to_logits:
            logits.register_hook(lambda gradient: tracker.note("loss"))  # type: ignore[no-untyped-call]
            total = loss.loss_sum(logits, batch.targets)
            del logits
            tracker.note("loss")
            (total / 2).backward()  # type: ignore[no-untyped-call]
            tracker.note("end")
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    return TracedPass(tuple(tracker.events), buffers, shape.numel(), shape[-1], size, flops, operations)


class _LinearKeepingInput(torch.autograd.Function):
    """A linear layer as DeepSpeed computes it under ZeRO-3: its input stays until backward, also if it is frozen."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(inputs, weight)
        return cast(torch.Tensor, torch.ops.aten.linear(inputs, weight, bias))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        gradient = gradients[0]
        needs_input, needs_weight, needs_bias = ctx.needs_input_grad
        rows = gradient.reshape(-1, gradient.shape[-1])
        of_input = gradient.matmul(weight) if needs_input else None
        of_weight = rows.t().matmul(inputs.reshape(-1, inputs.shape[-1])) if needs_weight else None
        return of_input, of_weight, rows.sum(0) if needs_bias else None


def _linear(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    return cast(torch.Tensor, _LinearKeepingInput.apply(inputs, weight, bias))  # type: ignore[no-untyped-call]


@contextmanager
def _without_data(spec: Spec) -> Iterator[None]:
    """Replace what transformers decides from data, or what has no shape without data, and shorten the loss.

    It looks at the positions to see whether a row has several samples. They have no data here, and it would always make
    a mask: it assumes one sample now, unless the spec packs. Experts are multiplied by the operator for old devices, of
    equal sizes, because torch knows the shapes of the new one in bf16 only. The pieces of the loss take the same
    memory one after another, so only the first few are computed.
    """
    with ExitStack() as stack:
        if spec.method.kind != "full" and spec.train.zero.stage == 3:
            stack.enter_context(mock.patch.object(torch.nn.functional, "linear", _linear))
        stack.enter_context(mock.patch.object(loss, "_pieces", lambda *given: islice(_PIECES(*given), _TRACED_PIECES)))
        stack.enter_context(mock.patch("transformers.integrations.moe._can_use_grouped_mm", return_value=False))
        if not spec.packed:
            stack.enter_context(
                mock.patch("transformers.masking_utils.find_packed_sequence_indices", return_value=None)
            )
        yield


def _batch(spec: Spec, mode: FakeTensorMode, rows: int) -> Batch:
    length, classify = spec.data.seq_len, spec.model.task == "sequence-classification"
    row = {
        "input_ids": [1] * length,
        "labels": [0] if classify else [IGNORE_INDEX, *[1] * (length - 1)],
        "lengths": [length // 2, length - length // 2] if spec.packed else [length],
        "sample_ids": [0],
    }
    table = ROW_SCHEMA.empty_table().from_pylist([row] * rows, schema=ROW_SCHEMA)
    batch = collate(table, spec.model.task, _PAD, torch.device("cpu"))
    return Batch(
        {name: mode.from_tensor(value) for name, value in batch.inputs.items()},
        mode.from_tensor(batch.targets),
        None if batch.columns is None else mode.from_tensor(batch.columns),
    )


def _watch(model: torch.nn.Module, tracker: Tracker) -> None:
    """Note when a module with parameters begins and ends, forward and backward, and when a gradient is ready.

    The events are those at which DeepSpeed's hooks act. A gradient that is ready is freed, as DeepSpeed does.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for name, module in model.named_modules():
        if any(name.startswith(f"{leaf}.") for leaf in _leaves(model)):
            continue
        inside = module.parameters(recurse=name in _leaves(model))
        own = tuple(dict.fromkeys(names[id(parameter)] for parameter in inside))
        if own:
            module.register_forward_pre_hook(partial(_begin, tracker, own))
            module.register_forward_hook(partial(_end, tracker, own))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(partial(_ready, tracker, names[id(parameter)]))  # type: ignore[no-untyped-call]


def _leaves(model: torch.nn.Module) -> set[str]:
    """Names of the modules that `gather_data_dependent_modules` makes leaves: DeepSpeed looks at no module inside."""
    found = set()
    for owner_name, owner in model.named_modules():
        for name, module in owner.named_children():
            inside = any(True for child in module.children() for _ in child.parameters())
            if name == "indexer" or (name == "experts" and not inside):
                found.add(f"{owner_name}.{name}" if owner_name else name)
    return found


def _begin(tracker: Tracker, parameters: tuple[str, ...], module: Any, inputs: Any) -> Any:
    """Before a module's forward; its inputs tell when its backward has ended."""
    tracker.note("enter", *parameters)
    return _marked(inputs, _once(tracker, "leave-backward", parameters))


def _end(tracker: Tracker, parameters: tuple[str, ...], module: Any, inputs: Any, output: Any) -> Any:
    """After a module's forward; its outputs tell when its backward begins."""
    tracker.note("leave", *parameters)
    return _marked(output, _once(tracker, "enter-backward", parameters))


def _once(tracker: Tracker, kind: EventKind, parameters: tuple[str, ...]) -> Callable[[], None]:
    """Make a function whose first call notes an event."""
    first = iter([True])

    def note() -> None:
        if next(first, False):
            tracker.note(kind, *parameters)

    return note


def _ready(tracker: Tracker, name: str, parameter: torch.Tensor) -> None:
    tracker.note("gradient", name)
    parameter.grad = None


def _marked(value: Any, note: Any) -> Any:
    def mark(tensor: torch.Tensor) -> torch.Tensor:
        return _Mark.apply(tensor, note) if tensor.requires_grad else tensor  # type: ignore[no-untyped-call]

    return tree_map_only(torch.Tensor, mark, value)


class _Mark(torch.autograd.Function):
    """Returns its input, and calls a function when the gradient passes, as DeepSpeed's hooks do."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, note: Any) -> torch.Tensor:
        ctx.note = note
        return value.detach()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        ctx.note()
        return gradient, None
