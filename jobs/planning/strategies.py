"""Plans a job on given machines: compares the options for training it, and chooses the fastest that fits. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, NamedTuple

from jobs.planning.accelerators import Machines
from jobs.planning.batching import Batching
from jobs.planning.memory import COPIED, Device, Memory, ModelTrace, memory_of_process
from jobs.planning.precision import Precision
from jobs.planning.step_time import StepTime, step_time
from jobs.planning.strategy import Strategy
from jobs.spec.finetune import Planned

# Stage, and what is offloaded to the host: the optimizer's states, the parameters.
_ZEROS: Final[tuple[tuple[Literal[1, 2, 3], bool, bool], ...]] = (
    (3, False, False),
    (2, False, False),
    (1, False, False),
    (2, True, False),
    (3, True, False),
    (3, True, True),
)
_ALIKE: Final = 0.02  # options whose times differ by less are equal; then the one that changes least is chosen
Trace = Callable[[Strategy], ModelTrace]


@dataclass(frozen=True)
class Option:
    """One way to train, with what it needs.

    Attributes:
        room: memory of one device that programs can use, bytes.
        host_room: one worker's share of its host's memory, bytes.
        changes: fields of `train` that it sets to other values than the spec has, with these values.
    """

    strategy: Strategy
    batching: Batching
    memory: Memory
    time: StepTime
    room: int
    host_room: int
    changes: dict[str, Any] = field(hash=False)

    @property
    def missing(self) -> int:
        """Bytes that one device lacks."""
        return max(0, self.memory.total - self.room)

    @property
    def missing_on_host(self) -> int:
        """Bytes that a worker lacks on its host."""
        return max(0, self.memory.host - self.host_room)

    @property
    def fits(self) -> bool:
        return self.missing == self.missing_on_host == 0


class Sufficient(NamedTuple):
    """Machines on which a job fits, and the fastest option there."""

    machines: Machines
    option: Option


@dataclass(frozen=True)
class JobPlan:
    """The needs of a job on the machines.

    Attributes:
        options: each strategy, with what it needs; the spec's values first.
        choosable: fields that the spec leaves out, which the plan may choose.
        total_steps: of the whole run; None: not known before the data is prepared.
        parameters, trained: of the model and of these the trained ones, in elements.
        note: a limit of the estimate for this model, in words; None: there is none.
        can_checkpoint: whether the model's type supports gradient checkpointing.
        run_tokens: tokens of the whole run without padding; None: not counted, or the data is not prepared.
        resources: fields of `resources` that a spec for these machines has, where this spec has others.
        rewritten: an option that fits with other values than the spec has; None: an option fits without, or none does.
        sufficient: more machines on which an option fits; None: an option fits on `machines`, or none was found.
    """

    machines: Machines
    precision: Precision
    parameters: int
    trained: int
    seq_len: int
    options: tuple[Option, ...]
    choosable: frozenset[Planned]
    total_steps: int | None
    note: str | None = None
    can_checkpoint: bool = True
    run_tokens: float | None = None
    resources: Mapping[str, int | str] = field(default_factory=dict)
    rewritten: Option | None = None
    sufficient: Sufficient | None = None

    @property
    def device(self) -> str:
        """The unit of a plan in messages: GPU, or worker if workers have none."""
        return "worker" if self.machines.is_cpu else "GPU"

    @property
    def spec_option(self) -> Option:
        """The spec's values, with the defaults of the fields that it leaves out."""
        return self.options[0]

    @property
    def chosen(self) -> Option | None:
        """The option that a run takes: on GPUs the fastest one that fits. None: no option fits.

        Of options with about the same time, it is the one that changes least, then one with the least offload, because
        its time is uncertain, and then the one that needs least memory. Workers without GPU keep the spec's values as
        long as these fit, because the time of small models depends on more than a plan knows.
        """
        if self.machines.is_cpu and self.spec_option.fits:
            return self.spec_option
        return self._fastest

    @property
    def _fastest(self) -> Option | None:
        fitting = [option for option in self.options if option.fits]
        most = (1 + _ALIKE) * min((option.time.seconds for option in fitting), default=0.0)
        alike = (option for option in fitting if option.time.seconds <= most)
        return min(alike, key=_preference, default=None)

    @property
    def keeps_slower(self) -> bool:
        """Whether the spec's values are kept, on workers without GPU, although another option that fits is faster."""
        return self.chosen == self.spec_option != self._fastest

    @property
    def nearest(self) -> Option:
        """The option that lacks least memory."""
        return min(self.options, key=lambda option: (option.missing + option.missing_on_host, option.time.seconds))

    def hours(self, option: Option) -> float | None:
        """Hours of training, without the start, evaluations and checkpoints."""
        return None if self.total_steps is None else self.total_steps * option.time.seconds / 3600


def _preference(option: Option) -> tuple[int, int, int]:
    offloads = option.strategy.offload_optimizer + option.strategy.offload_param
    return len(option.changes), offloads, option.memory.total


def options(
    spec_strategy: Strategy,
    batching: Batching,
    choosable: frozenset[Planned],
    trace: Trace,
    machines: Machines,
    most_workers: int = 1,
    copied_bytes: int = COPIED,
) -> tuple[Option, ...]:
    """List what can be chosen, the spec's values first. Of micro-batches that do not fit, the smallest is enough.

    Args:
        spec_strategy: the spec's values, or the defaults of those that it leaves out.
        batching: of the spec, on as many workers as the machines have GPUs. Its rows are kept.
        choosable: the fields that the plan may choose.
        trace: returns the model's trace for a strategy.
        most_workers: to which an elastic job may grow; no micro-batch may leave some of them without rows.
        copied_bytes: see `memory_of_process`.
    """

    def option(strategy: Strategy) -> Option:
        return option_of(strategy, spec_strategy, batching, trace(strategy), machines, copied_bytes)

    found = {spec_strategy: option(spec_strategy)}
    too_large = set[Strategy]()
    for strategy in strategies(spec_strategy, batching, choosable, machines.is_cpu, most_workers):
        alike = replace(strategy, per_device_train_batch_size=0)
        if strategy not in found and alike not in too_large:
            found[strategy] = option(strategy)
        if strategy in found and not found[strategy].fits:
            too_large.add(alike)  # larger micro-batches, which follow, need more
            small = with_smaller_buffers(found[strategy], choosable, machines)
            if small is not None and small not in found:
                found[small] = option(small)
    return tuple(found.values())


def with_smaller_buffers(option: Option, choosable: frozenset[Planned], machines: Machines) -> Strategy | None:
    """Return the strategy of an option with small buffers for ZeRO-3; None if they cannot make up for what it lacks."""
    may_suffice = 0 < option.missing <= option.memory.gathered_buckets + option.memory.communication
    # Without GPUs, what is freed stays in the process, and buffers are a small part of it.
    is_open = "zero" in choosable and option.strategy.stage == 3 and not machines.is_cpu
    return option.strategy.with_small_buffers if is_open and may_suffice else None


def option_of(
    strategy: Strategy,
    spec_strategy: Strategy,
    batching: Batching,
    traced: ModelTrace,
    machines: Machines,
    copied_bytes: int = COPIED,
) -> Option:
    """Predict memory and time of a strategy. Arguments: see `options`. `traced` is the trace for this strategy."""
    device: Device = "cpu" if machines.is_cpu else "cuda"
    passes = with_micro_batch(batching, strategy.per_device_train_batch_size)
    in_a_pass = replace(strategy, per_device_train_batch_size=min(passes.per_device, batching.rows))
    return Option(
        strategy=strategy,
        batching=passes,
        memory=memory_of_process(traced, in_a_pass, batching.num_workers, device, copied_bytes),
        time=step_time(traced, strategy, passes, machines),
        room=machines.accelerator.memory,
        host_room=machines.host_memory,
        changes={name: value for name, value in strategy.fields.items() if value != spec_strategy.fields[name]},
    )


def strategies(
    spec_strategy: Strategy, batching: Batching, choosable: frozenset[Planned], is_cpu: bool, most_workers: int = 1
) -> Iterator[Strategy]:
    """Yield the strategies that differ from the spec's in choosable fields only. Arguments: see `options`."""
    checkpointing = (False, True) if "gradient_checkpointing" in choosable else (spec_strategy.gradient_checkpointing,)
    # The host's memory is the one that a worker without GPU has anyway.
    all_zeros = [zero for zero in _ZEROS if not is_cpu or not zero[1]]
    own_zero = (spec_strategy.stage, spec_strategy.offload_optimizer, spec_strategy.offload_param)
    zeros = all_zeros if "zero" in choosable else [own_zero]
    is_chosen = "per_device_train_batch_size" in choosable
    sizes = _micro_batches(batching, most_workers) if is_chosen else (batching.per_device,)
    for stage, offload_optimizer, offload_param in zeros:
        for again in checkpointing:
            for size in sizes:
                yield replace(
                    spec_strategy,
                    stage=stage,
                    offload_optimizer=offload_optimizer,
                    offload_param=offload_param,
                    gradient_checkpointing=again,
                    per_device_train_batch_size=size,
                    accumulates=with_micro_batch(batching, size).accumulation > 1,
                )


def _micro_batches(batching: Batching, most_workers: int) -> tuple[int, ...]:
    """List powers of two up to a worker's rows of a step, and that number itself."""
    most = -(-batching.rows // max(batching.num_workers, most_workers))
    powers = [2**power for power in range(most.bit_length()) if 2**power <= most]
    return tuple(dict.fromkeys((*powers, most)))


def with_micro_batch(batching: Batching, per_device: int) -> Batching:
    """Return the batching of the same rows with this micro-batch."""
    accumulation = -(-batching.rows // (per_device * batching.num_workers))
    return replace(batching, per_device=per_device, accumulation=accumulation)
