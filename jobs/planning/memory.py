"""Predicts the peak memory of a worker, on its device and on its host. Pure functions of a trace of the model.

A step has two times at which memory can be highest: somewhere in the forward and backward pass, where activations meet
gathered parameters and gradients, and in the optimizer's update, where flat gradients are added to those of the pass.
An evaluation of more rows than a micro-batch has is a third one.
`memory_of` follows the trace event by event, adds what DeepSpeed holds at each, and returns the parts at the highest
total. `jobs.preflight.model_trace` makes the trace; `gathering` and `gradients` describe DeepSpeed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, Literal, NamedTuple

from jobs.planning.gathering import Gathering
from jobs.planning.gradients import Gradients, most_owned, sums_all_in_fp32
from jobs.planning.precision import Precision, element_bytes
from jobs.planning.strategy import Strategy

EventKind = Literal["enter", "leave", "enter-backward", "leave-backward", "gradient", "logits", "loss", "end"]
Device = Literal["cpu", "cuda"]
# Share of the total that is added: buffers inside operators, rows of uneven length, and what tensors below 1 KiB take.
RESERVE: Final = 0.02
RESERVE_OF_PROCESS: Final = 0.05  # the same of a whole process, whose heap is less regular
PROGRAM_BYTES: Final = 600_000_000  # resident set of a worker with a tiny model, measured: 570 MiB at most
# Share of the freed memory that glibc would keep at worst, which real processes kept (docs/planning.md).
_KEPT_SHARE: Final = 0.5
# Bytes on the host for each element of a worker's part: the copy of weights and moments from which checkpoints are
# written. A gang of trials also keeps the base weights, and the state before a cool-down.
COPIED: Final = 12
COPIED_BY_TRIALS: Final = 12 + 4 + 12
# Elements of this worker's part that ZeRO-3 updates at once. It copies their gradients, so DeepSpeed's default of 1e9
# would need 4 GB for that.
SUB_GROUP_SIZE: Final = 100_000_000
# Logits of a piece of the loss: enough to keep a GPU busy, while each fp32 copy of a piece takes at most 64 MiB.
_LARGEST_PIECE: Final = 2**24
_MOST_EVALUATED: Final = 2**26  # logits of one forward pass of an evaluation: 256 MiB in fp32
_PIECES: Final = 16  # at least, so that the fp32 copies of a piece take less than one byte for each logit of the batch


@dataclass(frozen=True)
class Moment:
    """One event of a training step, with the bytes of activations around it: a fixed part and one for each row."""

    kind: EventKind
    parameters: tuple[int, ...] = ()  # indices into `ModelTrace.sizes`: those of the module, or of the gradient
    live: int = 0  # bytes at the event, with the gradient if the event is one
    live_per_row: int = 0
    peak: int = 0  # most bytes since the event before
    peak_per_row: int = 0

    def live_at(self, rows: int) -> int:
        return self.live + self.live_per_row * rows

    def peak_at(self, rows: int) -> int:
        return self.peak + self.peak_per_row * rows


@dataclass(frozen=True)
class ModelTrace:
    """The needs of one forward and backward pass of a model, as plain numbers."""

    parameters: int  # elements, tied ones once
    trained: int
    sizes: tuple[int, ...]  # elements of each parameter, in the model's order
    trains: tuple[bool, ...]  # for each parameter, whether it is trained
    decays: tuple[bool, ...]  # for each parameter, whether it is in the optimizer's group with weight decay
    moments: tuple[Moment, ...]  # of two rows and more
    moments_of_one_row: tuple[Moment, ...]  # with `live` and `peak` alone: kernels may treat one row in another way
    buffer_bytes: int
    logits_bytes_per_row: int
    logits_per_row: int  # elements
    vocabulary: int  # logits of one target
    loss_bytes_per_logit: float  # temporaries of the loss for each logit of a piece
    flops_per_row: int  # of one forward pass of one row
    operations: int  # of one forward pass of any number of rows, without views
    gradient_checkpointing: bool
    precision: Precision
    seq_len: int
    note: str | None = None

    @property
    def element_bytes(self) -> int:
        """Bytes of an element of the weights."""
        return element_bytes(self.precision)

    @property
    def trained_sizes(self) -> tuple[int, ...]:
        """[parameters]; elements of each parameter, 0 if it is frozen."""
        return tuple(size if trains else 0 for size, trains in zip(self.sizes, self.trains, strict=True))


@dataclass(frozen=True)
class Memory:
    """Bytes of one worker at the moment of its highest total."""

    parameters: int = 0
    gradients: int = 0
    optimizer_states: int = 0
    optimizer_temporaries: int = 0  # copies of gradients for their norms and for Adam, if the update is highest
    activations: int = 0
    logits: int = 0
    evaluation: int = 0  # logits of an evaluation, if it is the highest moment
    gathered_buckets: int = 0  # whole parameters that ZeRO-3 has gathered
    communication: int = 0  # buckets in which gradients are reduced, and copies for collectives
    reserve: int = 0
    program: int = 0  # of a worker without GPU: Python and its libraries
    kept: int = 0  # of a worker without GPU: freed memory that glibc keeps, see `_largest_heap`
    checkpoint_copy: int = 0  # of a worker without GPU: `COPIED`
    # Host memory of a worker with a GPU: the program, what is offloaded, and `COPIED`. A worker without GPU has all its
    # parts in host memory, and 0 here.
    host_program: int = 0
    host_parameters: int = 0
    host_gradients: int = 0
    host_optimizer_states: int = 0
    host_checkpoint_copy: int = 0

    @property
    def host(self) -> int:
        """Bytes on the host of a worker with a GPU."""
        return (
            self.host_program + self.host_parameters + self.host_gradients + self.host_optimizer_states
            + self.host_checkpoint_copy
        )  # fmt: skip

    @property
    def total(self) -> int:
        """Bytes on the worker's device."""
        return self.used + self.reserve

    @property
    def used(self) -> int:
        """`total` without the reserve."""
        return (
            self.parameters + self.gradients + self.optimizer_states + self.optimizer_temporaries + self.activations
            + self.logits + self.evaluation + self.gathered_buckets + self.communication + self.program + self.kept
            + self.checkpoint_copy
        )  # fmt: skip


def memory_of(trace: ModelTrace, strategy: Strategy, num_workers: int, device: Device = "cuda") -> Memory:
    """Return the peak of one worker's tensors. The trace must have been made with the strategy's checkpointing."""
    static = static_memory(trace, strategy, num_workers, device)
    peak = max(
        _pass_peak(trace, strategy, num_workers, device, static),
        _update_peak(trace, strategy, num_workers, static),
        _evaluation_peak(trace, strategy, num_workers, device, static),
        key=lambda memory: memory.used,
    )
    if device == "cpu":  # what is offloaded is in the same memory
        peak = replace(
            peak,
            parameters=peak.parameters + peak.host_parameters,
            gradients=peak.gradients + peak.host_gradients,
            optimizer_states=peak.optimizer_states + peak.host_optimizer_states,
            host_parameters=0,
            host_gradients=0,
            host_optimizer_states=0,
        )
    return replace(peak, reserve=int(RESERVE * peak.used))


def memory_of_process(
    trace: ModelTrace, strategy: Strategy, num_workers: int, device: Device, copied_bytes: int = COPIED
) -> Memory:
    """Return `memory_of` with the copies on the host, and on CPUs with all of the process.

    Args:
        copied_bytes: `COPIED` or `COPIED_BY_TRIALS`.
    """
    memory = memory_of(trace, strategy, num_workers, device)
    copied = copied_bytes * -(-trace.trained // num_workers)
    if device == "cuda":
        return replace(memory, host_program=PROGRAM_BYTES, host_checkpoint_copy=copied)
    kept = int(_KEPT_SHARE * max(_largest_heap(trace, strategy, num_workers) - memory.used, 0))
    process = replace(memory, program=PROGRAM_BYTES, checkpoint_copy=copied, kept=kept)
    return replace(process, reserve=int(RESERVE_OF_PROCESS * process.used))


def _largest_heap(trace: ModelTrace, strategy: Strategy, num_workers: int) -> int:
    """Return the bytes to which the tensors of a worker without GPU let glibc's heap grow at worst.

    Freed memory stays in the heap (`jobs.training.model.host_memory`). At worst, no gap fits what is allocated next.
    Then each kind of tensor has its own highest moment, and each gradient a place of its own.
    """
    static = static_memory(trace, strategy, num_workers, "cpu")
    most, activations, copies = _Added(), 0, 0
    for moment, before, copied, after in _pass(trace, strategy, num_workers, "cpu"):
        most = _Added(*map(max, most, before, after))
        activations = max(activations, moment.peak_at(strategy.per_device_train_batch_size))
        lasting = max(after.gathered_buckets - before.gathered_buckets, 0)  # of the copies, what is in `after` too
        copies = max(copies, copied - lasting)
    gradients = trace.element_bytes * trace.trained
    update = _update_peak(trace, strategy, num_workers, static).used - static.used
    return static.used + static.host + sum(most) + activations + copies + gradients + update


def static_memory(trace: ModelTrace, strategy: Strategy, num_workers: int, device: Device = "cuda") -> Memory:
    """Return what is held for the whole step.

    ZeRO-1 and 2 (`DeepSpeedZeroOptimizer.__init__`): flat weights of all parameters, and of this worker's part an fp32
    copy and Adam's two moments, 12 bytes an element. In bf16, ZeRO-1 also has fp32 sums of all gradients. ZeRO-3
    (`_create_fp32_partitions`, `_setup_for_real_optimizer`): the part of the weights, the same 12 bytes, a flat fp32
    buffer for the part's gradients, and a bucket. With fp32 the copy is the weights themselves, if both are in the same
    memory (`Partitions.share_fp32_weights`). Offload moves the 12 bytes to the host, with 4 bytes for the gradient that
    Adam reads. ZeRO-1 and 2 add buffers for the way back and, in fp32, the sums of earlier passes
    (`accumulated_grads_in_cpu`); with 2 bytes for a weight, these sums stay on the GPU.
    """
    of_element, offloads = trace.element_bytes, strategy.offload_optimizer
    part = -(-trace.trained // num_workers)
    frozen = (trace.parameters - trace.trained) * of_element
    is_near = offloads == strategy.offload_param or device == "cpu"
    shared = strategy.stage == 3 and trace.precision == "fp32" and is_near
    states = part * (8 if shared else 12)
    if strategy.stage < 3:
        largest = max(trace.trained_sizes) * of_element
        sums_on_host = strategy.stage == 2 and of_element == 4 and strategy.accumulates and device == "cuda"
        sums = 4 * most_owned(trace.trained_sizes, trace.decays, num_workers) if sums_on_host else 0
        return Memory(
            parameters=trace.trained * of_element + frozen + trace.buffer_bytes,
            gradients=4 * trace.trained if sums_all_in_fp32(strategy, trace.precision) else 0,
            optimizer_states=0 if offloads else states,
            communication=largest if offloads else 0,
            host_optimizer_states=states if offloads else 0,
            host_gradients=part * 4 + sums + largest if offloads else 0,
            host_parameters=part * of_element if offloads else 0,
        )
    weights = part * of_element + -(-frozen // num_workers)
    return Memory(
        parameters=trace.buffer_bytes + (0 if strategy.offload_param else weights),
        gradients=0 if offloads else 4 * part,
        optimizer_states=0 if offloads else states,
        communication=strategy.reduce_bucket_size * of_element,
        host_parameters=weights if strategy.offload_param else 0,
        host_optimizer_states=states if offloads else 0,
        host_gradients=8 * part if offloads else 0,
    )


def _pass_peak(trace: ModelTrace, strategy: Strategy, num_workers: int, device: Device, static: Memory) -> Memory:
    """Return the highest moment of the forward and backward pass."""
    rows = strategy.per_device_train_batch_size
    piece = int(trace.loss_bytes_per_logit * piece_of_loss(trace.vocabulary, trace.logits_per_row * rows))
    best, highest, logits = _Added(), 0, 0
    held_by, held = best, 0
    for moment, before, copied, after in _pass(trace, strategy, num_workers, device):
        if before is not held_by:
            held_by, held = before, before.total
        pieces = piece if moment.kind == "loss" else 0
        if held + moment.peak_at(rows) + pieces > highest:
            best = before.with_activations(moment.peak_at(rows), logits, pieces)
            highest = best.total
        if moment.kind == "logits":
            logits = trace.logits_bytes_per_row * rows
        if copied and held + copied + moment.live_at(rows) > highest:
            during = before._replace(communication=before.communication + copied)
            best = during.with_activations(moment.live_at(rows), logits)
            highest = best.total
        if after is not before and after.total > highest:
            best, highest = after, after.total
        logits = 0 if moment.kind == "gradient" else logits
    return replace(
        static,
        gradients=static.gradients + best.gradients,
        gathered_buckets=best.gathered_buckets,
        communication=static.communication + best.communication,
        activations=best.activations,
        logits=best.logits,
    )


class _Added(NamedTuple):
    """Bytes beyond those of the whole step at one moment of a pass. A tuple: a plan compares 100,000 of them."""

    gradients: int = 0
    gathered_buckets: int = 0
    communication: int = 0
    activations: int = 0
    logits: int = 0

    @property
    def total(self) -> int:
        return self.gradients + self.gathered_buckets + self.communication + self.activations + self.logits

    def with_activations(self, activations: int, logits: int, piece: int = 0) -> _Added:
        """Add activations, of which `logits` bytes are logits, and a piece of the loss."""
        logits = min(logits, activations)
        return self._replace(activations=activations - logits, logits=logits + piece)


def _pass(
    trace: ModelTrace, strategy: Strategy, num_workers: int, device: Device
) -> Iterator[tuple[Moment, _Added, int, _Added]]:
    """Yield each moment of a forward and backward pass, with what DeepSpeed holds around it.

    Beside the moment: bytes that are held before it, bytes of copies that are needed only during it, and bytes that
    are held after it. Activations and logits are not counted here.
    """
    gloo, gathering = device == "cpu", None
    if _gathers(strategy, num_workers, device):
        visits = [moment.parameters for moment in trace.moments if moment.kind in ("enter", "enter-backward")]
        gathering = Gathering(trace.sizes, visits, strategy, num_workers, trace.element_bytes, gloo)
    gradients = Gradients(trace.trained_sizes, trace.decays, strategy, num_workers, trace.precision, gloo)
    after = _Added(gradients.held, gathering.held if gathering else 0, gradients.buckets)
    for moment in trace.moments_of_one_row if strategy.per_device_train_batch_size == 1 else trace.moments:
        before, copied = after, 0
        if moment.kind == "gradient":
            copied = gradients.add(moment.parameters[0])
            after = before._replace(gradients=gradients.held, communication=gradients.buckets)
        elif moment.kind == "end":
            copied = gradients.end()
            after = before._replace(gradients=gradients.held, communication=gradients.buckets)
        elif gathering and moment.kind in ("enter", "enter-backward"):
            copied = gathering.enter(moment.parameters)
            after = before._replace(gathered_buckets=gathering.held)
        elif gathering and moment.kind in ("leave", "leave-backward"):
            gathering.leave(moment.parameters)
            after = before._replace(gathered_buckets=gathering.held)
        yield moment, before, copied, after


def _gathers(strategy: Strategy, num_workers: int, device: Device) -> bool:
    """Whether DeepSpeed makes a module's weights whole on the device before each of its calls."""
    return (strategy.offload_param and device == "cuda") or (strategy.stage == 3 and num_workers > 1)


def _update_peak(trace: ModelTrace, strategy: Strategy, num_workers: int, static: Memory) -> Memory:
    """Return the moment of the optimizer's update.

    First DeepSpeed computes the norm of each gradient. Then Adam updates one flat tensor after another, and needs the
    flat gradient of each. Neither torch's fused AdamW nor DeepSpeed's Adam on the host makes temporaries.
    """
    if strategy.offload_optimizer:
        return static
    gradients = Gradients(trace.trained_sizes, trace.decays, strategy, num_workers, trace.precision)
    flat = 0 if gradients.is_flat else 4 * largest_flat(trace, strategy.stage, num_workers)
    copies = max(flat, gradients.norm_at_update)
    return replace(static, gradients=static.gradients + gradients.at_update, optimizer_temporaries=copies)


def _evaluation_peak(trace: ModelTrace, strategy: Strategy, num_workers: int, device: Device, static: Memory) -> Memory:
    """Return the moment of an evaluation at which its logits exist. What a single layer computes is not counted.

    A small model is whole then (`jobs.training.model.release`). In a step of training, frozen weights that the backward
    pass does not use are not.
    """
    trained = strategy.per_device_train_batch_size
    rows = rows_within(strategy.per_device_eval_batch_size, trained, trace.logits_per_row)
    is_whole = _gathers(strategy, num_workers, device) and sum(trace.sizes) <= strategy.max_reuse_distance // 2
    if rows <= trained and not (rows and is_whole and not all(trace.trains)):  # a training step needs more
        return Memory()
    if is_whole:
        gathered = trace.element_bytes * sum(-(-size // num_workers) * num_workers for size in trace.sizes)
    else:
        passed = _pass(trace, strategy, num_workers, device)
        gathered = max((held.gathered_buckets for moment, held, _, _ in passed if moment.kind == "logits"), default=0)
    piece = trace.loss_bytes_per_logit * piece_of_loss(trace.vocabulary, trace.logits_per_row * rows)
    return replace(static, gathered_buckets=gathered, evaluation=trace.logits_bytes_per_row * rows + int(piece))


def largest_flat(trace: ModelTrace, stage: int, num_workers: int) -> int:
    """Return the elements of the largest flat tensor that a worker updates.

    ZeRO-1 and 2 have one for each of the optimizer's groups, with and without weight decay. ZeRO-3 closes one once it
    has `SUB_GROUP_SIZE` elements (`DeepSpeedZeroOptimizer_Stage3._create_fp16_sub_groups`).
    """
    largest = 0
    for kind in (True, False):
        filled = 0
        for size, decays in zip(trace.trained_sizes, trace.decays, strict=True):
            filled += -(-size // num_workers) if decays is kind else 0
            largest = max(largest, filled)
            if stage == 3 and filled >= SUB_GROUP_SIZE:
                filled = 0
    return largest


def piece_of_loss(vocabulary: int, logits: int) -> int:
    """Return the logits that `jobs.training.loop.loss` processes at once: those of some targets, at least one."""
    return max(1, min(_LARGEST_PIECE, logits // _PIECES) // max(vocabulary, 1)) * vocabulary


def rows_within(wanted: int, trained: int, logits_of_row: int) -> int:
    """Return the rows of a forward pass of an evaluation: `wanted`, but at most as many as keep its logits few.

    It is at least a micro-batch of training, which takes more memory than an evaluation of as many rows.
    """
    return min(wanted, max(trained, _MOST_EVALUATED // max(logits_of_row, 1), 1))
