"""Which way to train is chosen, and how long a step takes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jobs.planning.accelerators import CPU, GIB, Machines, accelerator_of
from jobs.planning.batching import Batching
from jobs.planning.memory import ModelTrace, Moment
from jobs.planning.step_time import EFFICIENCY, step_time
from jobs.planning.strategies import JobPlan, options
from jobs.planning.strategy import Strategy
from jobs.preflight.plan_text import format_refusal
from jobs.spec.finetune import PLANNED, Planned
from orchestrator.pages.plan import plan_page

B = 10**9


def trace(gradient_checkpointing: bool, parameters: int = 7 * B) -> ModelTrace:
    """A model of equal layers whose activations take 4 GiB a row, or 1 GiB with checkpointing."""
    row = (1 if gradient_checkpointing else 4) * GIB
    sizes = (parameters // 100,) * 100
    moments = (
        Moment("logits", (), 0, row, 0, row),
        Moment("loss", (), 0, row, 0, row),
        *(Moment("gradient", (number,), 0, row, 0, row) for number in range(100)),
    )
    return ModelTrace(
        parameters=parameters, trained=parameters, sizes=sizes,
        trains=(True,) * 100, decays=(True,) * 100, moments=moments,
        moments_of_one_row=moments, buffer_bytes=0, logits_bytes_per_row=0, logits_per_row=0,
        vocabulary=32_000, loss_bytes_per_logit=0.0, flops_per_row=2 * parameters * 4096, operations=1000,
        gradient_checkpointing=gradient_checkpointing, precision="bf16", seq_len=4096,
    )  # fmt: skip


def traced(strategy: Strategy) -> ModelTrace:
    return trace(strategy.gradient_checkpointing)


def found(machines: Machines, choosable: frozenset[Planned] = PLANNED, rows: int = 64) -> JobPlan:
    workers = machines.gpus
    batching = Batching(rows, 1, -(-rows // workers), workers)
    compared = options(Strategy(), batching, choosable, traced, machines)
    return JobPlan(machines, "bf16", 7 * B, 7 * B, 4096, compared, choosable, None)


def on(text_gpus: int, name: str) -> Machines:
    return Machines(1, text_gpus, accelerator_of(name))


def test_what_is_written_is_chosen_if_nothing_is_faster() -> None:
    best = found(on(8, "H100-80")).chosen
    assert best is not None and best.changes == {}


def test_a_small_gpu_gets_offload_and_checkpointing() -> None:
    best = found(replace(on(1, "A100-40"), node_gib=256)).chosen
    assert best is not None
    assert best.strategy.offload_optimizer and best.fits, "84 GB of Adam's states do not fit"


def test_a_worker_without_gpu_is_offered_no_offload() -> None:
    cpu = Machines(1, 2, replace(accelerator_of("A100-40"), name=CPU), 64)
    assert not any(option.strategy.offload_optimizer for option in found(cpu).options)
    assert {option.strategy.stage for option in found(cpu).options} == {1, 2, 3}


def test_each_option_is_predicted_from_the_trace_of_its_own_strategy() -> None:
    asked = list[Strategy]()

    def noted(strategy: Strategy) -> ModelTrace:
        asked.append(strategy)
        return traced(strategy)

    compared = options(Strategy(), Batching(8, 1, 8, 1), PLANNED, noted, on(1, "H100-80"))
    assert asked == [option.strategy for option in compared], "frozen layers keep more under ZeRO-3"


def test_the_global_batch_is_kept() -> None:
    for option in found(on(8, "H100-80"), rows=60).options:
        batching = option.batching
        assert batching.rows == 60
        assert batching.accumulation * batching.per_device * batching.num_workers >= 60
        assert (batching.accumulation - 1) * batching.per_device * batching.num_workers < 60


def test_only_choosable_fields_are_changed() -> None:
    plan = found(on(1, "T4-16"), choosable=frozenset({"gradient_checkpointing"}))
    assert {tuple(option.changes) for option in set(plan.options)} == {(), ("gradient_checkpointing",)}
    assert plan.chosen is None
    assert plan.nearest.missing > 100 * GIB, "weights, gradients and Adam's states: 18 bytes for each parameter"


def test_a_step_takes_what_its_flops_take() -> None:
    machines = on(8, "H100-80")
    time = step_time(trace(False), Strategy(), Batching(64, 1, 8, 8), machines)
    flops = 6 * 7 * B * 64 * 4096
    assert time.compute_s == pytest.approx(flops / 8 / (EFFICIENCY * 989e12))
    assert time.seconds > time.compute_s, "the optimizer's update comes after"
    assert time.mfu == pytest.approx(flops / time.seconds / (8 * 989e12))
    again = step_time(trace(True), Strategy(gradient_checkpointing=True), Batching(64, 1, 8, 8), machines)
    assert again.compute_s == pytest.approx(4 / 3 * time.compute_s)


def test_workers_without_rows_make_a_step_no_faster() -> None:
    eight, sixteen = (
        step_time(trace(False), Strategy(), Batching(64, 8, 1, workers), on(workers, "H100-80")) for workers in (8, 16)
    )
    assert sixteen.compute_s == eight.compute_s and sixteen.mfu < 0.6 * eight.mfu


def test_without_gpus_the_values_of_the_spec_stay_as_long_as_they_fit() -> None:
    accelerator = replace(accelerator_of("H100"), name=CPU, memory_gib=4000)
    assert found(Machines(1, 8, accelerator)).chosen == found(Machines(1, 8, accelerator)).spec_option
    small = found(Machines(1, 8, replace(accelerator, memory_gib=36)))
    assert small.chosen is not None and small.chosen.changes


def test_a_slow_network_decides_the_step() -> None:
    batching, card = Batching(16, 1, 1, 16), accelerator_of("L4")
    near = step_time(trace(False), Strategy(), batching, Machines(1, 16, card))
    far = step_time(trace(False), Strategy(), batching, Machines(2, 8, card))
    assert far.seconds > near.seconds
    assert far.communication_s > far.compute_s
    # Stage 3 moves the weights twice and the gradients once.
    assert far.communication_s == pytest.approx(3 * 2 * 7 * B * 15 / 16 / 6.25e9)


def test_offload_needs_a_host_with_enough_memory() -> None:
    large = [option for option in found(replace(on(1, "A100-40"), node_gib=256)).options if option.fits]
    small = [option for option in found(replace(on(1, "A100-40"), node_gib=64)).options if option.fits]
    assert large and not small
    offloaded = [
        option for option in found(replace(on(1, "A100-40"), node_gib=64)).options if option.strategy.offload_optimizer
    ]
    assert min(option.missing_on_host for option in offloaded) > 100 * GIB


def test_a_refusal_says_how_much_memory_of_the_host_would_do() -> None:
    plan = found(replace(on(1, "A10-24"), node_gib=64))
    said = format_refusal(plan)
    assert plan.nearest.missing > 0  # the option that lacks least in all lacks memory of the GPU
    assert " GiB more of host memory for each GPU (ZeRO 3, optimizer on the host, " in said
    more = float(said.partition("These would help: ")[2].partition(" GiB more")[0].rpartition(" ")[2])
    assert found(replace(on(1, "A10-24"), node_gib=64 + round(more) + 10)).chosen is not None


def test_offload_costs_time_on_the_host() -> None:
    batching, machines = Batching(8, 1, 1, 8), on(8, "A100-80")
    here = step_time(trace(False), Strategy(), batching, machines)
    there = step_time(trace(False), replace(Strategy(), offload_optimizer=True), batching, machines)
    assert there.optimizer_s > 10 * here.optimizer_s


def test_micro_batches_beyond_one_that_does_not_fit_are_left_out() -> None:
    sizes: dict[object, list[tuple[int, bool]]] = {}
    for option in found(on(8, "A100-40")).options[1:]:
        alike = replace(option.strategy, per_device_train_batch_size=0)
        sizes.setdefault(alike, []).append((option.strategy.per_device_train_batch_size, option.fits))
    fits = [[fit for _, fit in sorted(tried)] for tried in sizes.values()]
    assert all(tried[:-1] == [True] * (len(tried) - 1) for tried in fits), "the last one may lack memory"
    assert any(tried[-1] for tried in fits) and not all(tried[-1] for tried in fits)


def test_small_buffers_are_tried_where_they_may_suffice() -> None:
    def with_room(gib: float, choosable: frozenset[Planned] = PLANNED) -> JobPlan:
        gpu = replace(accelerator_of("A100-80"), memory_gib=gib, host_gib=12.0)
        return found(Machines(1, 8, gpu), choosable)

    default = next(one for one in with_room(80.0).options if one.strategy == Strategy(gradient_checkpointing=True))
    needed = default.memory.total / GIB
    plan = with_room(needed - 0.05)
    assert plan.chosen is not None and plan.chosen.strategy == replace(
        Strategy(gradient_checkpointing=True),
        reduce_bucket_size=10_000_000,
        prefetch_bucket_size=10_000_000,
        max_live_parameters=100_000_000,
        max_reuse_distance=0,
    )
    assert plan.chosen.changes["zero"] == {
        "stage": 3, "reduce_bucket_size": 10_000_000, "prefetch_bucket_size": 10_000_000,
        "max_live_parameters": 100_000_000, "max_reuse_distance": 0,
    }  # fmt: skip
    time = plan.chosen.time
    assert time.seconds == pytest.approx(time.compute_s + time.communication_s + time.optimizer_s), "nothing overlaps"
    assert not any(one.strategy.has_small_buffers for one in with_room(needed + 0.05).options if one.fits)
    assert with_room(needed - 0.05, frozenset({"gradient_checkpointing"})).chosen is None


def small_model(machines: Machines, choosable: frozenset[Planned] = PLANNED) -> JobPlan:
    """A plan for a model that is the faster the larger its micro-batch is."""
    batching = Batching(64, 1, 64 // machines.gpus, machines.gpus)

    def traced_small(strategy: Strategy) -> ModelTrace:
        return replace(trace(strategy.gradient_checkpointing, 10**6), flops_per_row=1000)

    compared = options(Strategy(), batching, choosable, traced_small, machines)
    return JobPlan(machines, "bf16", 10**6, 10**6, 4096, compared, choosable, None)


def test_workers_without_gpu_tell_that_they_keep_values_that_are_slower() -> None:
    cores = Machines(1, 2, replace(accelerator_of("H100-80"), name=CPU, memory_gib=500.0))
    plan = small_model(cores)
    assert plan.chosen == plan.spec_option and plan.keeps_slower
    assert not small_model(cores, frozenset()).keeps_slower and not small_model(on(2, "H100-80")).keeps_slower
    assert "is kept although another option is faster: on CPUs, the time of an option depends" in plan_page(plan)


def test_a_page_names_what_is_assumed_and_has_a_column_of_micro_batches() -> None:
    page = plan_page(small_model(on(2, "H100-80")))
    assert "% MFU (computing at 45 % is assumed)" in page
    head = next(line for line in page.splitlines() if "passes" in line)
    assert head.split()[:3] == ["strategy", "micro-batch", "passes"]
    each = "each row has its own best micro-batch: compare GiB only between equal ones"
    assert each in page
    assert each not in plan_page(small_model(on(2, "H100-80"), frozenset({"zero"})))
