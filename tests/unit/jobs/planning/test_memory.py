"""What a worker holds for the whole step, and at its highest moment, by arithmetic."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace

import pytest

from jobs.planning.memory import (
    COPIED,
    COPIED_BY_TRIALS,
    PROGRAM_BYTES,
    RESERVE,
    SUB_GROUP_SIZE,
    Device,
    Memory,
    ModelTrace,
    Moment,
    largest_flat,
    memory_of,
    memory_of_process,
    static_memory,
)
from jobs.planning.precision import Precision
from jobs.planning.strategy import Strategy

LLAMA_2_7B = 6_738_415_616  # elements
LARGEST = 32_000 * 4_096
GIB = 2**30


def trace_of(sizes: tuple[int, ...], moments: tuple[Moment, ...] = (), precision: Precision = "bf16") -> ModelTrace:
    return ModelTrace(
        parameters=sum(sizes),
        trained=sum(sizes),
        sizes=sizes,
        trains=tuple(True for _ in sizes),
        decays=tuple(True for _ in sizes),
        moments=moments,
        moments_of_one_row=moments,
        buffer_bytes=0,
        logits_bytes_per_row=0,
        logits_per_row=0,
        vocabulary=1,
        loss_bytes_per_logit=0.0,
        flops_per_row=0,
        operations=1000,
        gradient_checkpointing=False,
        precision=precision,
        seq_len=1,
    )


SEVEN_B = trace_of((LARGEST, LLAMA_2_7B - LARGEST))


def test_frozen_weights_have_neither_gradients_nor_optimizer_states() -> None:
    adapted = replace(trace_of((1000, 20)), trained=20, trains=(False, True))
    for stage in (1, 2, 3):
        held = static_memory(adapted, Strategy(stage=stage, reduce_bucket_size=0), 1)
        assert (held.parameters, held.optimizer_states) == (2 * 1020, 12 * 20)
    small, full = (memory_of(trace, Strategy(), 2) for trace in (adapted, trace_of((1000, 20))))
    assert small.gradients < full.gradients and adapted.trained_sizes == (0, 20)
    offloaded = static_memory(adapted, Strategy(stage=2, offload_optimizer=True), 1)
    assert (offloaded.communication, offloaded.host) == (2 * 20, 20 * 18 + 2 * 20)


@pytest.mark.parametrize(
    ("stage", "workers", "bytes_per_element"),
    # bf16 weights, fp32 master weights and moments: 2 + 12. ZeRO-1 and 3 have fp32 gradients all the time: 4.
    [(1, 1, 18), (2, 8, 2 + 12 / 8), (3, 1, 18), (3, 8, 18 / 8)],
)
def test_states_of_a_7b_take_the_bytes_that_zero_promises(stage: int, workers: int, bytes_per_element: float) -> None:
    held = static_memory(SEVEN_B, Strategy(stage=stage, reduce_bucket_size=1), workers)  # type: ignore[arg-type]
    assert held.used == pytest.approx(bytes_per_element * LLAMA_2_7B, rel=1e-6)


def test_a_7b_with_both_offloads_leaves_one_gpu_almost_empty_and_fills_the_host() -> None:
    strategy = Strategy(stage=3, offload_optimizer=True, offload_param=True)
    held = static_memory(SEVEN_B, strategy, 1)
    assert held.used == 2 * strategy.reduce_bucket_size
    assert held.host == 22 * LLAMA_2_7B  # weights; master weights, moments, two of gradients
    assert (held.host_parameters, held.host_gradients) == (2 * LLAMA_2_7B, 8 * LLAMA_2_7B)
    assert held.host / GIB == pytest.approx(138, abs=0.1)


def test_fp32_weights_of_zero_3_are_the_ones_that_adam_updates() -> None:
    trace = trace_of((1000,), precision="fp32")
    assert static_memory(trace, Strategy(stage=3, reduce_bucket_size=1), 1).used == 16 * 1000 + 4
    assert static_memory(trace, Strategy(stage=2), 1).used == 16 * 1000  # a copy, but no buffer for gradients


def test_fp32_weights_and_adam_s_are_one_tensor_where_both_are_on_the_host() -> None:
    trace = trace_of((1000,), precision="fp32")
    offloaded = Strategy(stage=3, offload_optimizer=True, reduce_bucket_size=1)
    both = dataclasses.replace(offloaded, offload_param=True)
    states = [static_memory(trace, strategy, 1).host_optimizer_states for strategy in (offloaded, both)]
    assert [*states, static_memory(trace, offloaded, 1, "cpu").host_optimizer_states] == [12_000, 8_000, 8_000]
    weights_only = Strategy(stage=3, offload_param=True, reduce_bucket_size=1)
    assert static_memory(trace, weights_only, 1).optimizer_states == 12_000


def test_parts_are_those_of_one_moment_and_sum_to_the_total() -> None:
    moments = (
        Moment("enter", (0,)),
        Moment("leave", (0,), live=500, peak=700),
        Moment("logits", live=500, live_per_row=10, peak=500, peak_per_row=10),
        Moment("gradient", (0,), live=400, peak=400),
        Moment("end"),
    )
    trace = trace_of((10,), moments)
    small = memory_of(trace, Strategy(stage=3, reduce_bucket_size=1), 1)
    assert (small.activations, small.gradients) == (700, 40)
    assert small.used == 180 + 2 + 700 and small.total == small.used + int(RESERVE * small.used)
    large = memory_of(trace_of((1000,), moments, "fp32"), Strategy(stage=3, reduce_bucket_size=1000), 1)
    of_update = (large.activations, large.gradients, large.optimizer_temporaries)
    assert of_update == (0, 4_000, 8_000), "the update needs more than the pass: fp64, for the norm"
    assert memory_of(trace, Strategy(stage=3, per_device_train_batch_size=30), 1).activations == 800


def test_zero_3_updates_its_part_in_pieces() -> None:
    sizes = (SUB_GROUP_SIZE // 2,) * 5
    assert largest_flat(trace_of(sizes), 3, 1) == SUB_GROUP_SIZE
    assert largest_flat(trace_of(sizes), 2, 1) == sum(sizes)
    assert largest_flat(trace_of(sizes), 3, 4) == sum(sizes) // 4  # less than a piece
    assert largest_flat(trace_of((3 * SUB_GROUP_SIZE, 1)), 3, 2) == 3 * SUB_GROUP_SIZE // 2  # one weight is not cut


def test_a_worker_without_gpu_keeps_what_its_tensors_have_freed() -> None:
    moments = (
        Moment("enter", (0,)),
        Moment("leave", (0,), live=500, peak=700),
        Moment("gradient", (0,), live=0, peak=0),
        Moment("end"),
    )
    trace = trace_of((1000,), moments)
    strategy = Strategy(stage=3, reduce_bucket_size=10_000)
    tensors = memory_of(trace, strategy, 1, "cpu")
    process = memory_of_process(trace, strategy, 1, "cpu")
    # The update is the highest moment. Half of the places stays that activations had, the gradient, and its fp32 copy.
    assert (tensors.activations, process.kept) == (0, (700 + 2 * 1000 + 4 * 1000) // 2)
    assert process.used == tensors.used + 3350 + PROGRAM_BYTES + 12 * 1000
    on_gpu = memory_of_process(trace, strategy, 1, "cuda")
    assert (on_gpu.kept, on_gpu.program, on_gpu.host) == (0, 0, PROGRAM_BYTES + 12 * 1000)


def test_on_cpus_what_is_offloaded_counts_as_the_workers_memory() -> None:
    strategy = Strategy(stage=3, offload_optimizer=True)
    on_gpu, on_cpu = (memory_of(SEVEN_B, strategy, 2, device) for device in ("cuda", "cpu"))
    assert on_cpu.host == 0 and on_cpu.used == on_gpu.used + on_gpu.host
    assert on_cpu.gradients == on_gpu.gradients + on_gpu.host_gradients > on_gpu.gradients


def test_a_trace_is_plain_json() -> None:
    trace = trace_of((10,), (Moment("enter", (0,)),))
    assert json.loads(json.dumps(dataclasses.asdict(trace)))["moments"][0]["parameters"] == [0]
    assert Memory().total == 0


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_gang_of_trials_keeps_more_copies(device: Device) -> None:
    trace = trace_of((1000,), (Moment("end"),))
    of_run, of_trials = (
        memory_of_process(trace, Strategy(stage=3), 4, device, copied) for copied in (COPIED, COPIED_BY_TRIALS)
    )
    more = (of_trials.checkpoint_copy + of_trials.host) - (of_run.checkpoint_copy + of_run.host)
    assert more == 250 * (4 + 12)
