"""Estimates the time of an optimizer step by a roofline. Pure.

Compute and communication overlap, so the longer of them counts; with small buffers of ZeRO-3, their sum. The
optimizer's update follows. The share of the peak that matrix products reach is an assumption until the first steps of a
run have measured it (`mean_step_s`).
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from jobs.planning.accelerators import Accelerator, Machines
from jobs.planning.batching import Batching
from jobs.planning.memory import ModelTrace
from jobs.planning.strategy import Strategy

# Share of the dense peak that the executed FLOPs reach. Published figures lie on both sides: an eager Llama 8B of
# torchtitan on 8 H100 0.33 (5,762 tokens/s), a Llama 8B with full checkpointing on one H200 0.77 (10,471 tokens/s).
EFFICIENCY: Final = 0.45
# Bytes that AdamW moves for each element of its shard: it reads gradient, weight and two moments and writes the last
# three, all fp32, and writes the weight once more for the forward pass.
_ADAM_BYTES: Final = 30
# Seconds in which an eager model's program starts an operation on the device; a pass of few rows waits for it.
_START_S: Final = 10e-6
_HOST_ADAM_GB_S: Final = 25.0  # bandwidth of a worker's share of its host's memory: an assumption
_HELD_UP: Final = 8  # one measured step of this many may have been held up
# A guess of the share of a step's time that is proportional to its computed tokens (`row_order.computed_tokens`). It
# counts as much as four measured steps whose tokens deviate by a quarter from the mean (the sum of the squares).
_SHARE_BY_TOKENS, _GUESS = 0.5, 0.25


@dataclass(frozen=True)
class StepTime:
    """The estimate of one optimizer step, seconds.

    Attributes:
        compute_s: forward and backward passes of a worker.
        communication_s: gathering of parameters and reduction of gradients.
        optimizer_s: the update of the worker's shard, with transfers to and from the host if it is offloaded.
        tokens_per_s: of all workers, padding included.
        mfu: model FLOPs, without recomputation, as a share of the dense peak.
        overlaps: whether communication is hidden behind the passes.
    """

    compute_s: float
    communication_s: float
    optimizer_s: float
    tokens_per_s: float
    mfu: float
    overlaps: bool = True

    @property
    def seconds(self) -> float:
        return _seconds(self.compute_s, self.communication_s, self.optimizer_s, self.overlaps)


def _seconds(compute: float, communication: float, optimizer: float, overlaps: bool) -> float:
    return (max(compute, communication) if overlaps else compute + communication) + optimizer


def step_time(trace: ModelTrace, strategy: Strategy, batching: Batching, machines: Machines) -> StepTime:
    """Estimate a step of `batching.rows` rows.

    FLOPs of a backward pass are twice those of the forward pass (2001.08361, section 2.1): once for the gradients of
    activations, and once for those of weights, which frozen ones do not have. With gradient checkpointing the forward
    pass is computed again.
    """
    gpu = machines.accelerator
    peak = 1e12 * (gpu.fp32_tflops if trace.precision == "fp32" else gpu.tflops)
    flops_per_row = (2.0 + trace.trained / trace.parameters) * trace.flops_per_row
    again = trace.flops_per_row if strategy.gradient_checkpointing else 0.0
    executed = (flops_per_row + again) * batching.most_rows  # the others wait for the first worker
    # Every pass reads all weights at least once, in the forward pass and twice in the backward pass.
    reading = batching.accumulation * 3 * trace.element_bytes * trace.parameters / (1e9 * gpu.bandwidth_gb_s)
    passes = batching.accumulation * (4 if strategy.gradient_checkpointing else 3)
    compute = max(executed / (peak * EFFICIENCY), reading, passes * trace.operations * _START_S)
    communication = _communication_s(trace, strategy, batching, machines)
    optimizer = _optimizer_s(trace, strategy, batching.num_workers, gpu)
    overlaps = not strategy.has_small_buffers
    seconds = _seconds(compute, communication, optimizer, overlaps)
    return StepTime(
        compute_s=compute,
        communication_s=communication,
        optimizer_s=optimizer,
        tokens_per_s=batching.rows * trace.seq_len / seconds,
        mfu=flops_per_row * batching.rows / seconds / (peak * batching.num_workers),
        overlaps=overlaps,
    )


def _communication_s(trace: ModelTrace, strategy: Strategy, batching: Batching, machines: Machines) -> float:
    """Seconds in which the slowest link moves a step's parameters and gradients (ZeRO, 1910.02054, section 7).

    Stage 3 gathers the parameters for the forward and the backward pass and reduces the gradients, in every pass. With
    small buffers, what is computed again for checkpointing is not kept for the backward pass, but gathered again. Stage
    2 reduces in every pass, stage 1 once a step, and both gather the updated parameters once.
    """
    workers, gpu = batching.num_workers, machines.accelerator
    passes, trained = batching.accumulation, trace.trained
    gatherings = 3 if strategy.has_small_buffers and strategy.gradient_checkpointing else 2
    elements = {
        1: 2 * trained,
        2: (1 + passes) * trained,
        3: passes * (gatherings * trace.parameters + trained),
    }[strategy.stage]
    moved = trace.element_bytes * elements * (workers - 1) / workers
    link = gpu.link_gb_s if machines.nodes == 1 else min(gpu.link_gb_s, gpu.network_gb_s)
    seconds = moved / (1e9 * link)
    if strategy.offload_param:  # every worker sends its shard to its GPU for each gathering
        shard = trace.element_bytes * trace.parameters / workers
        seconds = max(seconds, gatherings * batching.accumulation * shard / (1e9 * gpu.host_gb_s))
    return seconds


def _optimizer_s(trace: ModelTrace, strategy: Strategy, workers: int, gpu: Accelerator) -> float:
    shard = trace.trained / workers
    if not strategy.offload_optimizer:
        return shard * _ADAM_BYTES / (1e9 * gpu.bandwidth_gb_s)
    transfers = shard * (4 + trace.element_bytes) / (1e9 * gpu.host_gb_s)  # gradients in fp32 down, weights up
    return transfers + shard * _ADAM_BYTES / (1e9 * _HOST_ADAM_GB_S)


def repeated_s(record: Mapping[str, Any]) -> float:
    """Return the seconds of a measured step that later ones take too: all but those of `jobs.training.step_clock`.

    Args:
        record: a line of a run's metrics.
    """
    return float(record.get("step_time_s", 0.0)) - float(record.get("first_touch_s", 0.0))


def mean_step_s(seconds: Sequence[float], deviations: Sequence[float]) -> float:
    """Estimate the seconds of a step with the mean computed tokens from measured steps.

    Steps with more tokens than the mean take longer, so each counts as what it would have taken with the mean tokens:
    seconds are m (1 + b x), where x is the relative deviation of the tokens from their mean, and b is fitted by least
    squares, with a guess beside the measurements. The longest eighth, and at least the longest of several steps, then
    counts as the longest of the others, because something may have held it up.

    Args:
        seconds: of measured steps, at least one.
        deviations: x of each of them.
    """
    steps = list(zip(seconds, deviations, strict=True))
    mean_s = statistics.mean(one_s / (1 + _SHARE_BY_TOKENS * x) for one_s, x in steps) or 1.0
    products = sum(x * (one_s / mean_s - 1) for one_s, x in steps) + _GUESS * _SHARE_BY_TOKENS
    share = min(max(products / (sum(x * x for _, x in steps) + _GUESS), 0.0), 0.99)
    counted = sorted(one_s / (1 + share * x) for one_s, x in steps)
    held_up = min(max(len(counted) // _HELD_UP, 1), len(counted) - 1)
    return statistics.mean(min(one_s, counted[-1 - held_up]) for one_s in counted)
