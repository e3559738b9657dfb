"""Computes how many bytes DeepSpeed holds for gradients during a backward pass, for each ZeRO stage.

Sources: `DeepSpeedZeroOptimizer` (runtime/zero/stage_1_and_2.py) and `DeepSpeedZeroOptimizer_Stage3` (stage3.py), with
contiguous gradients, overlapped communication and sums in fp32, as `jobs.training.model.deepspeed_config` sets them. A
gradient that is ready is copied into a bucket; a bucket that has no room for the next one is reduced first.

ZeRO-1 in bf16 is another class (`BF16_Optimizer`, runtime/bf16_optimizer.py), unless the optimizer is offloaded. It
keeps all gradients twice, in bf16 and summed in fp32, and reduces the sums at the end. In fp16, and with offload,
ZeRO-1 sums each gradient in fp32 (`grad_accum`), and sends the sums in the precision of the weights.

ZeRO-1 forgets a gradient that it has reduced if the worker has a part of it. The others stay until the update; in the
plan, the worker that holds most has none of those that are larger than the bucket.

Each gradient is copied in fp64 for its norm (`get_norm_dtype`), with an offloaded optimizer before it goes to the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from jobs.planning.precision import Precision, element_bytes
from jobs.planning.strategy import Strategy

_ENGINE_BUCKET: Final = 500_000_000  # elements
_NORM_AT_ONCE: Final = 250_000_000  # elements, of ZeRO-3 (`_constant_buffered_norm2`)


@dataclass
class Gradients:
    """Gradients of the last backward pass before an update, of the worker that holds most.

    Most is held then. `add` is called as each is ready.
    """

    sizes: Sequence[int]  # elements of each parameter; 0 for a frozen one
    decays: Sequence[bool]
    strategy: Strategy
    num_workers: int
    precision: Precision
    gloo: bool = False  # gloo reduces and scatters in a copy. Its workers have host memory only
    held: int = 0
    buckets: int = 0
    _filled: int = 0  # elements in the bucket
    _members: int = 0
    _largest: int = 0  # elements of the largest member
    _oversized: int = 0  # bytes of gradients that are too large for the bucket, and wait for their reduction
    _reduced: bool = False

    def __post_init__(self) -> None:
        self.stage, self.accumulates = self.strategy.stage, self.strategy.accumulates
        self.element_bytes = element_bytes(self.precision)
        self.sums_all = sums_all_in_fp32(self.strategy, self.precision)
        self.part = -(-sum(self.sizes) // self.num_workers)  # elements that a worker updates
        self.own = most_owned(self.sizes, self.decays, self.num_workers)  # of the parameters of which it has a part
        self.on_host = self.strategy.offload_optimizer and not self.is_flat and not self.gloo
        if self.accumulates:
            self.held = self._kept
            if self.stage == 1 and not self.sums_all:  # made in the first pass, and released after the last one only
                self.buckets = self._both_buckets

    @property
    def is_flat(self) -> bool:
        """Whether the gradients of a part are one tensor already, so that the update needs no copy."""
        return self.stage < 3 and self.element_bytes < 4

    @property
    def at_update(self) -> int:
        """Bytes of gradients when the update begins, beyond the flat buffer that ZeRO-3 always has."""
        if self.sums_all:
            return self.element_bytes * sum(self.sizes)
        return 0 if self.stage == 3 else 4 * (self.part if self.is_flat else self.own)

    @property
    def norm_at_update(self) -> int:
        """Bytes of the fp64 copy of the largest gradient of a part. `BF16_Optimizer` makes none."""
        largest = max(self.sizes, default=0)
        part = -(-largest // self.num_workers) if self.stage == 3 else min(largest, self.part)
        return 0 if self.sums_all else 8 * part

    def end(self) -> int:
        """Reduce the gradients that are left after the last layer. Returns the bytes that this needs for a moment.

        `BF16_Optimizer` reduces its sums, also on one worker: the engine collects the flat sums of the optimizer's
        groups until a bucket is full. `allreduce_bucket` joins those of a bucket in fp32 if it has several, and copies
        them in the precision of the weights.
        """
        if not self.sums_all:
            return self._reduce() if self._filled else 0
        buckets: list[list[int]] = [[]]
        for kind in (True, False):
            if size := sum(size for size, decays in zip(self.sizes, self.decays, strict=True) if decays is kind):
                buckets[-1].append(size)
                if sum(buckets[-1]) > _ENGINE_BUCKET:
                    buckets.append([])
        return max((4 * (len(bucket) > 1) + self.element_bytes) * sum(bucket) for bucket in buckets)

    @property
    def _kept(self) -> int:
        """Bytes that earlier backward passes of the step have left.

        ZeRO-1 sums whole gradients and reduces them once. ZeRO-2 reduces each time, into this worker's part.
        """
        if self.stage == 3 or (self.on_host and self.stage == 2):
            return 0
        if self.stage == 1:
            return (self.element_bytes if self.sums_all else 4) * sum(self.sizes)
        return 4 * (self.part if self.is_flat else self.own)

    def add(self, number: int) -> int:
        """Take the gradient of a parameter. Returns bytes that are needed for a moment."""
        size, needed = self.sizes[number], 0
        if self.sums_all:
            self.held += 0 if self.accumulates else self.element_bytes * size
            return 0
        if self.stage < 3 and not self.buckets:
            self.buckets = self._both_buckets
        if self.stage == 1 and self.element_bytes < 4:
            needed += 4 * size  # the gradient in fp32
        if self._filled + size > self.strategy.reduce_bucket_size and self._filled:
            needed += self._reduce()
        if self.stage == 1 and self.accumulates:
            self.held -= 4 * size
        if size > self.strategy.reduce_bucket_size - self._filled:
            if self.stage == 1 and self.element_bytes < 4 and self.strategy.offload_optimizer and not self.accumulates:
                needed = max(needed, 6 * size)  # the sum and its clone; the gradient in half precision is gone
            waiting = size * self._bucket_width
            self._oversized += waiting
            self.held += waiting
        self._filled += size
        self._members += 1
        self._largest = max(self._largest, size)
        return needed

    @property
    def _both_buckets(self) -> int:
        return 2 * self.strategy.reduce_bucket_size * self._bucket_width

    @property
    def _bucket_width(self) -> int:
        return 4 if self.stage == 1 else self.element_bytes

    def _reduce(self) -> int:
        """Empty the bucket. Returns the bytes of the copies that a collective needs."""
        single = self._members == 1 and self._filled % self.num_workers == 0
        flat = 0 if single else self._filled * self._bucket_width
        in_a_copy = self.gloo and self.stage == 3 and self.num_workers > 1
        sent = self._filled * self._bucket_width if in_a_copy else 0
        cast = 4 * self._filled // (self.num_workers if self.stage == 3 else 1) if self.element_bytes < 4 else 0
        if self.stage == 1 and self.element_bytes < 4:
            sent = self.element_bytes * self._filled
            copies = sent + max(flat, 4 * min(self._largest, self.part))
            if self.strategy.offload_optimizer:  # gloo's thread may release what it has sent after the call
                copies = max(copies, self._for_its_norm + (sent if self.gloo else 0))
        elif not self.strategy.offload_optimizer:
            copies = flat + sent + cast
        elif self.stage < 3:
            copies = flat + max(cast, self._for_its_norm)
        else:  # all of the bucket is cast to fp32 before the first norm; then the flat copy is freed
            copies = max(flat + max(sent, cast), (flat if self.element_bytes == 4 else 0) + cast + self._for_its_norm)
        if self.stage < 3 and not self._reduced and not self.on_host:
            self._reduced = True
            new = 4 * (self.part if self.is_flat else self.own)
            if not (self.is_flat and self.accumulates and self.stage == 2):
                self.held += new
                copies += new if self.is_flat else 0  # it is there before the collective
        self.held -= 0 if self.stage == 1 and self.num_workers > 1 else self._oversized
        self._filled = self._members = self._largest = self._oversized = 0
        return copies

    @property
    def _for_its_norm(self) -> int:
        """Bytes of the fp64 copy of the largest gradient in the bucket.

        ZeRO-3 first brings the sum of a partition back from the host, in fp32.
        """
        if self.stage < 3:
            return 8 * min(self._largest, self.part)
        part = -(-self._largest // self.num_workers)
        return 8 * min(part, _NORM_AT_ONCE) + (0 if self.gloo else 4 * part)


def sums_all_in_fp32(strategy: Strategy, precision: Precision) -> bool:
    """Whether DeepSpeed chooses `BF16_Optimizer` (`_do_optimizer_sanity_check` of the engine)."""
    return strategy.stage == 1 and precision == "bf16" and not strategy.offload_optimizer


def most_owned(sizes: Sequence[int], decays: Sequence[bool], num_workers: int) -> int:
    """Return the most elements of parameters that lie, at least in part, in one worker's part of the flat groups."""
    owned = [0] * num_workers
    for kind in (True, False):
        group = [size for size, decay in zip(sizes, decays, strict=True) if size and decay is kind]
        part = -(-sum(group) // (2 * num_workers)) * 2 if group else 1
        begin = 0
        for size in group:
            for worker in range(begin // part, (begin + size - 1) // part + 1):
                owned[worker] += size
            begin += size
    return max(owned)
