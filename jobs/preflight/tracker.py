"""Records how much memory the tensors of one training step use over time, without computing the step.

Under torch's FakeTensorMode every operator returns tensors with the right shape and no data, so a step of any model
takes milliseconds and no memory. A dispatch mode sees every result, and a finalizer sees the end of its storage.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, cast

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from jobs.planning.memory import EventKind
from jobs.training.model.sharding import data_dependent_modules

# The registry counts attention of GPUs only. The operator of CPUs has the same first arguments:
# query, key, value, dropout_p, is_causal.
_ON_CPU: Final = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_UNIQUE: Final = 4  # references to an argument of an operator that only its caller holds
_COUNTED_AS: Final = {_ON_CPU: torch.ops.aten._scaled_dot_product_flash_attention}

_AT_MODULES: tuple[tuple[EventKind, EventKind], ...] = (("enter", "leave-backward"), ("leave", "enter-backward"))


@dataclass(frozen=True)
class Event:
    """One event of a step, and the bytes of living tensors around it. Parameters and buffers are not counted."""

    kind: EventKind
    place: str  # name of the module that begins or ends, or of the gradient's parameter
    parameters: tuple[str, ...]  # names: the module's own, or the gradient's
    live: int
    peak: int  # most bytes since the event before
    flops: int  # of the step so far, see `Tracker`
    operations: int
    details: tuple[tuple[str, int], ...] = ()  # of operators since the event before: name, bytes after it


class TooManyOperationsError(Exception):
    """Raised by an operator that goes beyond `Tracker.most_operations`."""


class Tracker(TorchDispatchMode):
    """Counts the bytes of every storage that an operator returns, from its first appearance to its end.

    Attributes:
        flops: number for matrix products and attention so far. A kernel of attention computes `attended_pairs`.
        window: tokens to which each token attends in the attention that is being computed, itself included and in each
            direction; None: all.
        operations: number of operators that have returned a new storage; views do not count.
        most_operations: a limit of that number; None: there is none.
    """

    def __init__(
        self, uncounted: Iterable[torch.Tensor], most_operations: int | None = None, detailed: bool = False
    ) -> None:
        """Make a tracker that does not count the storages of the tensors `uncounted`.

        Args:
            detailed: whether events list their operators.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.events: list[Event] = []
        self.most_operations = most_operations
        self.window: int | None = None
        self._details: list[tuple[str, int]] | None = [] if detailed else None
        self.live = self.peak = self.flops = self.operations = 0
        given = list(uncounted)
        self._known = {tensor.untyped_storage()._cdata for tensor in given}
        self._shapes = {tensor.shape for tensor in given}
        self._reused: set[int] = set()  # storages whose bytes belong to a later tensor

    def note(self, kind: EventKind, place: str = "", parameters: tuple[str, ...] = ()) -> None:
        details = tuple(self._details or ())
        self.events.append(Event(kind, place, parameters, self.live, self.peak, self.flops, self.operations, details))
        self.peak = self.live
        if self._details is not None:
            self._details = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        count = flop_registry.get(_COUNTED_AS.get(packet, packet))
        if count is not None:
            of_all_pairs = int(count(*args, **(kwargs or {}), out_val=out))
            if packet is _ON_CPU:
                tokens, is_causal = args[1].shape[-2], len(args) > 4 and args[4]
                self.flops += of_all_pairs * attended_pairs(tokens, is_causal, self.window) // tokens**2
            else:
                self.flops += of_all_pairs
        elif packet.__name__ == "grouped_mm_fallback":  # experts: (tokens, k) times (experts, k, n)
            self.flops += 2 * args[0].numel() * args[1].shape[-1]
        before = self.operations
        # In real runs, some gradients of activations are added in place and others are not. All of them count as not.
        if func is torch.ops.aten.add.Tensor and out.shape in self._shapes and is_sum_in_place(args):
            self._reuse(args[0].untyped_storage(), out.untyped_storage())
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._register(tensor.untyped_storage())
        if self._details is not None and self.operations > before:
            self._details.append((str(packet), self.live))
        if self.most_operations is not None and self.operations > self.most_operations:
            raise TooManyOperationsError
        return out

    def _register(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.operations += 1
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._end, key, size)

    def _reuse(self, old: torch.UntypedStorage, new: torch.UntypedStorage) -> None:
        """Count the bytes of an old storage as those of a new one, because both are the same memory in a real run."""
        key, size = new._cdata, new.nbytes()
        if old._cdata in self._known and old.nbytes() == size:
            self._reused.add(old._cdata)
            self._known.add(key)
            self.operations += 1
            weakref.finalize(new, self._end, key, size)

    def _end(self, key: int, size: int) -> None:
        self._known.discard(key)
        if key in self._reused:
            self._reused.discard(key)
        else:
            self.live -= size


@contextmanager
def watched(model: torch.nn.Module, tracker: Tracker) -> Iterator[None]:
    """Note when a module begins and ends, forward and backward, and when a gradient is ready.

    The events are those at which DeepSpeed's hooks act: also at modules without parameters, where it gathers what comes
    next. A gradient that is ready is freed, as DeepSpeed does.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    leaves = set(data_dependent_modules(model))
    hooks = []
    for name, module in model.named_modules():
        if any(name.startswith(f"{leaf}.") for leaf in leaves):
            continue
        inside = module.parameters(recurse=name in leaves)
        own = tuple(dict.fromkeys(names[id(parameter)] for parameter in inside))
        before, after = (partial(_noted, tracker, name, own, *kinds) for kinds in _AT_MODULES)
        hooks += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    for parameter in model.parameters():
        if parameter.requires_grad:
            ready = partial(_ready, tracker, names[id(parameter)])
            hooks.append(parameter.register_post_accumulate_grad_hook(ready))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _noted(
    tracker: Tracker, name: str, own: tuple[str, ...], now: EventKind, backward: EventKind, module: Any, *tensors: Any
) -> Any:
    """Be a hook before or after a module's forward. The tensors there tell when its backward ends or begins.

    It begins with the first gradient of its outputs, and ends with the last gradient of its inputs.
    """
    tracker.note(now, name, own)
    tensors_left = 0

    def note() -> None:
        nonlocal tensors_left
        tensors_left -= 1
        if tensors_left == (of_outputs - 1 if backward == "enter-backward" else 0):
            tracker.note(backward, name, own)

    def mark(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal tensors_left
        if not tensor.requires_grad:
            return tensor
        tensors_left += 1
        return cast(torch.Tensor, _Mark.apply(tensor, note))  # type: ignore[no-untyped-call]

    marked = tree_map_only(torch.Tensor, mark, tensors[-1])
    of_outputs = tensors_left
    return tuple(map(_in_place, tensors[-1], marked)) if now == "enter" else marked


def _in_place(given: Any, marked: Any) -> Any:
    """Return the marked input. A dict stays the same object, as in DeepSpeed, because a module may write into it."""
    if not isinstance(given, dict):
        return marked
    given.update(marked)
    return given


def _ready(tracker: Tracker, name: str, parameter: torch.Tensor) -> None:
    tracker.note("gradient", name, (name,))
    parameter.grad = None


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


def attended_pairs(tokens: int, is_causal: bool, window: int | None = None) -> int:
    """Return how many pairs of tokens a kernel of attention computes: it leaves out those that a token does not see.

    Args:
        window: see `Tracker.window`.
    """
    seen = min(window or tokens, tokens)
    earlier = seen * (seen + 1) // 2 + (tokens - seen) * seen  # with itself
    return earlier if is_causal else 2 * earlier - tokens


def is_sum_in_place(args: Sequence[Any]) -> bool:
    """Whether these arguments of `add` are two gradients that autograd adds in place if they are real tensors.

    It writes the sum into the older gradient, the first argument, if nothing else refers to its storage. The base of a
    view refers to it. Source: `InputBuffer::accumulate` of PyTorch.
    """
    if torch._C._current_graph_task_id() == -1 or not all(isinstance(one, torch.Tensor) for one in args[:2]):
        return False
    older: Any = args[0]
    return args[1].shape == older.shape and not older._is_view() and older._use_count() == _UNIQUE
