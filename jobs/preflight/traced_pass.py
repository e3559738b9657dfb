"""Runs one forward and backward pass of a model without data, and records its events.

The pass is that of the training loop: the same model class, batch, loss and checkpointing. A model is built once for
passes of several numbers of rows: adapters alone take seconds.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any, cast
from unittest import mock

import torch
import transformers
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from jobs.data.prepared import IGNORE_INDEX, ROW_SCHEMA
from jobs.planning.layers import LAYER_COUNTS
from jobs.planning.memory import piece_of_loss
from jobs.preflight.tracker import Event, Tracker, watched
from jobs.spec.finetune import Spec
from jobs.training.loop import loss
from jobs.training.model.adapters import adapted
from jobs.training.model.batch import Batch, collate, model_logits
from jobs.training.model.checkpointing import checkpoint_activations
from jobs.training.model.load import (
    attention_arguments,
    model_class,
    set_pad_token,
    without_flash_attention,
)

_PIECES, _TRACED_PIECES = loss._pieces, 3
_ATTENTION = torch.nn.functional.scaled_dot_product_attention
_LONG = 256  # tokens; shorter rows take seconds, even one token after another
# Operators of a layer: 35 in Llama, 102 in DeepSeek-V3. Layers with a loop over the tokens start several for each.
_MANY = 512
_PAD = 0  # no size depends on the token that fills a row
_FLASH = "traced-without-mask"  # name of an attention function; for one with "flash", transformers fetches a kernel


@dataclass(frozen=True)
class TracedPass:
    """The events of one pass, without the temporaries of the loss, and facts that the events do not contain."""

    events: tuple[Event, ...]
    buffer_bytes: int
    logits: int  # elements
    vocabulary: int  # logits of one target
    logits_bytes: int
    flops: int  # of the forward pass
    operations: int  # of the forward pass, without views
    loss_bytes_per_logit: float  # temporaries of the loss for each logit of a piece


def with_adapter(spec: Spec, model: Any, model_dir: str, new: Collection[str]) -> Any:
    """Add what the spec's method trains, as `load_model` does; for `new` see `adapted`."""
    if spec.method.kind == "full":
        return model
    # `Module.to` fails for tensors without data. PEFT calls it for a device, which is the same, and for a dtype, which
    # `adapted` sets.
    with mock.patch.object(torch.nn.Module, "to", lambda module, *_, **__: module), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        return adapted(spec, model, model_dir, new)


@dataclass(frozen=True)
class FakeModel:
    """A model whose tensors have no data.

    Attributes:
        mode: in which it was built, and computes.
        on_gpu: whether attention keeps what it keeps on a GPU.
    """

    model: Any
    mode: FakeTensorMode
    on_gpu: bool


def fake_model(
    spec: Spec, model_dir: str, new: Collection[str], dtype: torch.dtype, config: Any, on_gpu: bool = False
) -> FakeModel:
    """Build the spec's model, with the adapter of its method; for `new` see `adapted`."""
    from transformers.initialization import no_init_weights

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode, no_init_weights():
        model = model_class(spec).from_config(config, dtype=dtype, **attention_arguments(without_flash_attention(spec)))
        model.tie_weights()
        if on_gpu and spec.model.attn_implementation == "flash_attention_2":
            with _flash_attention_in(None):
                model.set_attn_implementation(_FLASH)  # no effect on types that do not use transformers' functions
        model = with_adapter(spec, model, model_dir, new)
    set_pad_token(model.config, _PAD)
    if spec.train.gradient_checkpointing:
        model.config.get_text_config().use_cache = False  # transformers would set it with a warning
        checkpoint_activations(model)
    model.train()
    return FakeModel(model, mode, on_gpu)


def traced_pass(spec: Spec, built: FakeModel, rows: int, limited: bool = False, detailed: bool = False) -> TracedPass:
    """Trace a micro-batch of `rows` rows of `seq_len` tokens.

    Args:
        limited: whether to give up a model that starts more operators in a layer than a row has tokens, or than _MANY.
        detailed: whether events list their operators.

    Raises:
        TooManyOperationsError: the pass is limited, and has more operators.
        Exception: what torch raises for a step that depends on data.
    """
    model, mode = built.model, built.mode
    batch = _batch(spec, mode, rows)
    layers = sum(getattr(model.config.get_text_config(), name, None) or 0 for name in LAYER_COUNTS)
    most = layers * min(spec.data.seq_len, _MANY) if limited and layers and spec.data.seq_len >= _LONG else None
    tracker = Tracker([*model.parameters(), *model.buffers()], most, detailed)
    with watched(model, tracker), _without_data(spec, built.on_gpu, tracker), mode, tracker:
        logits = model_logits(model, batch, spec.model.task)
        tracker.note("logits")
        flops, operations, tracker.most_operations = tracker.flops, tracker.operations, None
        shape, size = logits.shape, logits.untyped_storage().nbytes()
        logits.register_hook(lambda gradient: tracker.note("loss"))
        total = loss.loss_sum(logits, batch.targets)
        del logits
        tracker.note("loss")
        (total / 2).backward()
        tracker.note("end")
    kept = tuple(_without_pieces(tracker.events))
    loss_bytes = max(event.peak - without.peak for event, without in zip(tracker.events, kept, strict=True))
    piece = piece_of_loss(shape[-1], shape.numel())
    return TracedPass(
        kept, bytes_of(model.buffers()), shape.numel(), shape[-1], size, flops, operations, loss_bytes / piece
    )


def bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _without_pieces(events: Sequence[Event]) -> Iterator[Event]:
    """Yield the events without the temporaries of the loss, which do not grow with the rows as the rest does."""
    before = 0
    for event in events:
        yield replace(event, peak=max(before, event.live), details=()) if event.kind == "loss" else event
        before = event.live


class _LinearOfZero3(torch.autograd.Function):
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
    return cast(torch.Tensor, _LinearOfZero3.apply(inputs, weight, bias))  # type: ignore[no-untyped-call]


@contextmanager
def without_advice() -> Iterator[None]:
    """Silence transformers, which advises to install kernels on this machine, although nothing is computed here."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)


@contextmanager
def without_decisions_from_data(packed: bool = False) -> Iterator[None]:
    """Replace what transformers decides from data, or what has no shape without data.

    It looks at the positions to see whether a row has several samples. They have no data here, and it would always make
    a mask: it assumes one sample now, unless rows are packed. Experts are multiplied by the operator for old devices,
    of equal sizes, because torch knows the shapes of the new one in bf16 only.
    """
    with ExitStack() as stack:
        stack.enter_context(mock.patch("transformers.integrations.moe._can_use_grouped_mm", _returning(False)))
        if not packed:
            of_packing = "transformers.masking_utils.find_packed_sequence_indices"
            stack.enter_context(mock.patch(of_packing, _returning(None)))
        yield


class _OneEndToken(TorchFunctionMode):
    """Stands for the end token, whose state classifiers such as BART's use: each row has one, at its end."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.unique_consecutive:
            return args[0].new_zeros(1)
        mask = next(iter(args[1]), None) if func is torch.Tensor.__getitem__ and isinstance(args[1], tuple) else None
        if isinstance(mask, torch.Tensor) and mask.dtype is torch.bool and mask.dim() == 2:
            return args[0][:, -1]
        return func(*args, **(kwargs or {}))


def _returning(value: object) -> Callable[..., object]:
    """Make a function that returns the value. A mock object would keep every tensor that it is called with."""
    return lambda *_, **__: value


def _attention_on_gpu(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Compute `scaled_dot_product_attention` with the kernel that keeps no matrix of all pairs of tokens.

    CUDA's kernels of this kind draw dropout themselves and take values of another size than keys. That of CPUs does
    neither, and then torch keeps these matrices.
    """
    size = value.shape[-1]
    if size < query.shape[-1]:
        value = torch.nn.functional.pad(value, (0, query.shape[-1] - size))
    found = _ATTENTION(query, key, value, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa)
    return found[..., :size]


def _flash_attention(
    tracker: Tracker | None,
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention as flash attention does, without a mask. The arguments are those that transformers passes.

    Flash attention does not mix the samples of a packed row. Here it does, because their lengths are not known.
    """
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    has_groups = query.shape[1] != key.shape[1]
    assert tracker is not None
    tracker.window = sliding_window
    try:
        found = _attention_on_gpu(query, key, value, None, 0.0, is_causal, scale=scaling, enable_gqa=has_groups)
    finally:
        tracker.window = None
    return found.transpose(1, 2).contiguous(), None


@contextmanager
def _flash_attention_in(tracker: Tracker | None) -> Iterator[None]:
    """Add `_flash_attention` to the attention functions of transformers.

    transformers makes no mask, because no mask function has the same name. `tracker` is needed for passes only.
    """
    functions = transformers.AttentionInterface._global_mapping
    with mock.patch.dict(functions, {_FLASH: partial(_flash_attention, tracker)}):
        yield


@contextmanager
def _without_data(spec: Spec, on_gpu: bool, tracker: Tracker) -> Iterator[None]:
    """Replace decisions from data, shorten the loss, and let layers keep what they keep under DeepSpeed and on GPUs.

    The pieces of the loss take the same memory one after another, so only the first few are computed.
    """
    with ExitStack() as stack:
        if spec.train.zero.stage == 3:
            stack.enter_context(mock.patch.object(torch.nn.functional, "linear", _linear))
        if on_gpu:
            name = "scaled_dot_product_attention"
            stack.enter_context(mock.patch.object(torch.nn.functional, name, _attention_on_gpu))
            stack.enter_context(_flash_attention_in(tracker))
        stack.enter_context(mock.patch.object(loss, "_pieces", lambda *given: islice(_PIECES(*given), _TRACED_PIECES)))
        stack.enter_context(without_decisions_from_data(spec.packed))
        if spec.model.task == "sequence-classification":
            stack.enter_context(_OneEndToken())
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
