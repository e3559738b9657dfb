"""Plants failures in the workers of a run: exceptions, signals, numbers, and faults of the storage.

Each process of the run reads the plants from its environment, when it starts. Light to import.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jobs.remedies.straggler import Timing
from tests.support.changed_module import LOOP, when_loaded

_WAIT_S = 120.0
_PAUSE_S = 2.0  # for a write in the background to fail before the storage is well again


@dataclass(frozen=True)
class Plant:
    """One failure.

    Attributes:
        at: place of the loop: loading, step, forward, backward, update, evaluation.
        what: one of ACTS, or of FACTORS, with which the logits are multiplied.
        rank: the rank that fails; None: every rank.
        steps: steps at which it fails, from 1; empty: at every one.
        times: how often each rank fails, over all worker groups; None: always.
    """

    at: str
    what: str
    rank: int | None = 1
    steps: tuple[int, ...] = ()
    times: int | None = 1


FACTORS = {"nan": float("nan"), "poison": 50.0}


def as_variable(plants: Sequence[Plant], folder: Path) -> str:
    """Write the plants as the variable PLANTED. `folder` is where the processes of the run note what has happened."""
    return json.dumps({"folder": str(folder), "plants": [asdict(plant) for plant in plants]})


def plant_all(variable: str) -> None:
    """Prepare this process for the plants: its storage now, its loop when it is loaded."""
    given = json.loads(variable)
    folder = Path(given["folder"])
    plants = [Plant(**{**one, "steps": tuple(one["steps"])}) for one in given["plants"]]
    if any(plant.what in CONTROLS for plant in plants):
        from tests.support.faulty import register

        register(folder)
    when_loaded(LOOP, lambda loop: _change(loop, plants, folder))


def _change(loop: Any, plants: Sequence[Plant], folder: Path) -> None:
    from jobs.training.loop import evaluation, step
    from jobs.training.model.engine import Engine, UpdateGate

    train_step = loop.train_step
    now: dict[str, Any] = {"step": 0, "run": None}

    def fail(at: str) -> float:
        """Let the plants of this place happen; the factor of the logits."""
        factor = 1.0
        for number, plant in enumerate(plants):
            if plant.at == at and _is_due(plant, now["step"], folder / f"plant-{number}"):
                factor *= FACTORS.get(plant.what, 1.0)
                ACTS.get(plant.what, _nothing)(Given(folder, now["run"]))
        return factor

    def failing(work: Callable[..., Any], at: str) -> Callable[..., Any]:
        def wrapped(*given: Any, **named: Any) -> Any:
            factor = fail(at)
            result = work(*given, **named)
            return result if factor == 1.0 else result * factor

        return wrapped

    def next_step(run: Any, rows: Any, *given: Any) -> Any:
        now.update(step=rows.step + 1, run=run)
        fail("step")
        return train_step(run, rows, *given)

    loop.train_step = next_step
    loop.load = failing(loop.load, "loading")
    step.model_logits = failing(step.model_logits, "forward")
    evaluation.model_logits = failing(evaluation.model_logits, "evaluation")
    Engine.backward = failing(Engine.backward, "backward")  # type: ignore[method-assign]
    UpdateGate.__call__ = failing(UpdateGate.__call__, "update")  # type: ignore[method-assign]


def _is_due(plant: Plant, step: int, notes: Path) -> bool:
    import torch.distributed as dist

    rank = dist.get_rank()
    if plant.rank not in (None, rank) or (plant.steps and step not in plant.steps):
        return False
    for number in range(plant.times if plant.times is not None else 1):
        note = Path(f"{notes}-rank-{rank}-{number}")
        if not note.exists():
            note.write_text(f"{os.getpid()} at step {step}")
            return True
    return plant.times is None


# What happens.


@dataclass(frozen=True)
class Given:
    """The arguments of an act: the folder of the run's notes, and the loop's `Run` once it trains."""

    folder: Path
    run: Any


def _nothing(_: Given) -> None:
    pass


def _raise(make: Callable[[], BaseException]) -> Callable[[Given], None]:
    def act(_: Given) -> None:
        raise make()

    return act


def _gpu_memory() -> BaseException:
    import torch

    return torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.50 GiB is "
        "free. Including non-PyTorch memory, this process has 77.60 GiB in use."
    )


def _host_memory() -> BaseException:
    return RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 8589934592 bytes. Error code 12 (Cannot allocate memory)"
    )


def _cuda(text: str, name: str) -> Callable[[], BaseException]:
    def make() -> BaseException:
        import torch

        more = "CUDA kernel errors might be asynchronously reported at some other API call"
        page = "https://docs.nvidia.com/cuda/cuda-runtime-api"
        return torch.AcceleratorError(
            f"CUDA error: {text}\nSearch for `{name}' in {page} for more information.\n{more}"
        )

    return make


def _nccl(text: str) -> Callable[[], BaseException]:
    def make() -> BaseException:
        import torch.distributed as dist

        return dist.DistBackendError(f"NCCL error in: NCCLUtils.cpp:94, {text}, NCCL version 2.27.5")

    return make


def _take_memory(given: Given) -> None:
    """Ask the GPU of this rank for more memory than it has."""
    import torch

    torch.empty(1 << 50, dtype=torch.uint8, device=given.run.worker.device)


def _index(given: Given) -> None:
    """Let a kernel on the GPU of this rank read beyond the end of a tensor. CUDA reports it at a later call."""
    import torch

    table = torch.zeros(4, device=given.run.worker.device)
    table[torch.full((1,), 9, device=table.device)].sum().item()


def _signal(number: signal.Signals) -> Callable[[Given], None]:
    return lambda _: os.kill(os.getpid(), number)


def _wait(given: Given) -> None:
    """Wait for the benchmark, which reads the pid of this process and acts on it, or on another process.

    Memory is taken all the while, because the kernel looks at a limit only when a process asks for more.
    """
    beside = given.folder / "waits.part"
    beside.write_text(str(os.getpid()))
    beside.rename(given.folder / "waits")
    held, until = [], time.monotonic() + _WAIT_S
    while time.monotonic() < until:
        held.append(b"x" * (256 << 10))
        time.sleep(0.1)


def _cut_links(_: Given) -> None:
    """Shut the connections between this rank and the others, as a network does that resets them."""
    import psutil
    import torch.distributed as dist

    def links() -> list[Any]:
        return [one for one in psutil.Process().net_connections("tcp") if one.raddr]

    ends: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(ends, [tuple(one.laddr) for one in links()])
    others = {end for rank, its in enumerate(ends) if rank != dist.get_rank() for end in its}
    if dist.get_rank() == 1:
        for one in links():
            if tuple(one.raddr) in others:
                socket.socket(fileno=os.dup(one.fd)).shutdown(socket.SHUT_RDWR)


def _lose_rows(given: Given) -> None:
    """Remove the prepared rows, which lie in the run's storage."""
    for shard in (given.folder.parent / "runs" / "prepared").rglob("*.arrow"):
        shard.unlink(missing_ok=True)


def _damage(given: Given) -> None:
    """Multiply all weights by 4, as an update does that is far too large."""
    import torch

    with torch.no_grad():
        for flat in given.run.engine.partitions.flats:
            flat.mul_(4)
        given.run.engine.partitions._refresh()


def _throttle(_: Given) -> None:
    """Stop this process for 90 of every 100 ms if it is rank 1, and let rank 0 compare the speeds after every step."""
    import torch.distributed as dist

    from jobs.training import speed_watch

    speed_watch.EVERY_S = 0.0  # type: ignore[misc]
    if dist.get_rank() == 1:
        subprocess.Popen([sys.executable, "-c", _THROTTLE, str(os.getpid())])


_THROTTLE = """
import os, signal, sys, time
pid = int(sys.argv[1])
while os.getppid() == pid:
    os.kill(pid, signal.SIGSTOP)
    time.sleep(0.09)
    os.kill(pid, signal.SIGCONT)
    time.sleep(0.01)
"""


def _slow_processor(_: Given) -> None:
    """Let the work of a speed test seem to take three times as long on rank 1, and do a test after every step."""
    import torch.distributed as dist

    from jobs.training import speed_watch

    speed_watch.EVERY_S = 0.0  # type: ignore[misc]
    times = 3 if dist.get_rank() == 1 else 1
    speed_watch.timing_of = lambda *_: Timing(0.03 * times, 0.03 * times)


CONTROLS = ("full", "stalled", "dropped", "dropped rows")


def _control(name: str) -> Callable[[Given], None]:
    return lambda given: (given.folder / name).touch()


def _well(given: Given) -> None:
    time.sleep(_PAUSE_S)
    for name in CONTROLS:
        (given.folder / name).unlink(missing_ok=True)


ACTS: dict[str, Callable[[Given], None]] = {
    "gpu memory": _raise(_gpu_memory),
    "host memory": _raise(_host_memory),
    "ecc": _raise(_cuda("uncorrectable ECC error encountered", "cudaErrorECCUncorrectable")),
    "assert": _raise(_cuda("device-side assert triggered", "cudaErrorAssert")),
    "nccl system": _raise(_nccl("unhandled system error (run with NCCL_DEBUG=INFO for details)")),
    "nccl peer": _raise(_nccl("remote process exited or there was a network error")),
    "take memory": _take_memory,
    "index": _index,
    "bug": _raise(lambda: KeyError("logits")),
    "kill": _signal(signal.SIGKILL),
    "stop": _signal(signal.SIGSTOP),
    "wait": _wait,
    "cut links": _cut_links,
    "throttle": _throttle,
    "slow processor": _slow_processor,
    "lose rows": _lose_rows,
    "damage": _damage,
    "well": _well,
    **{name: _control(name) for name in CONTROLS},
}
