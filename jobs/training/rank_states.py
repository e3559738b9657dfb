"""Observes and ends the ranks on a node. The driver of the run calls these functions on the node. Linux only.

Nothing here touches the run's storage or needs torch, because either may be the reason why a rank hangs.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

from cluster.local.supervisor import stat_fields
from jobs.remedies.hang import Doing, Observations, Pulse, RankState
from jobs.training.pulse import PULSE, STACKS, local_file, local_files

_STACK_WITHIN_S, _POLL_S = 3.0, 0.1
_PY_SPY: Final = Path(sys.executable).with_name("py-spy")  # a dependency of Ray's dashboard
_LOG_WITHIN_S = 1.0  # a log's storage may block
_MOST_FRAMES = 6
_FRAME = re.compile(r'^  File "(?P<file>.*)", line (?P<line>\d+) in (?P<name>.*)$', re.MULTILINE)
_SPIED_FRAME = re.compile(r"^    (.*) \((.*):(\d+)\)$", re.MULTILINE)  # of py-spy
_TRAINS = "/jobs/training/loop/"  # the thread whose stack contains this path is the one that trains
# Innermost calls of a rank that waits for the others. With NCCL it waits in the call that reads the result, or, in a
# speed test, in the call that waits for the GPU.
_COLLECTIVES = re.compile(r"/torch/distributed/|/deepspeed/|/torch/cuda/")
_READ_RESULTS = ("unpack_signals", "_gathered")


def rank_states(key: str, apart_s: float) -> tuple[Observations, ...]:
    """Observe each rank on this machine twice.

    Args:
        key: identifies the driver of the ranks.
        apart_s: seconds between the two observations.
    """
    first, at = _look(key), time.monotonic()
    time.sleep(apart_s)
    second, took_s = _look(key), time.monotonic() - at
    return tuple(Observations(first[rank], second[rank], took_s) for rank in first.keys() & second.keys())


def end_ranks(key: str, stacks: Mapping[int, str], victims: Collection[int]) -> None:
    """Append stacks to the logs of the ranks on this machine, then kill the victims among them.

    Args:
        stacks: text to append, by process id.
        victims: ids of processes, which may also run on other machines.
    """
    here = [pulse.pid for pulse in _pulses(key)]
    for pid in here:
        writer = threading.Thread(target=_append_to_log, args=(pid, stacks.get(pid, "")), daemon=True)
        writer.start()
        writer.join(_LOG_WITHIN_S)
    for pid in here:
        if pid in victims:
            with contextlib.suppress(OSError):  # it has ended
                os.kill(pid, signal.SIGKILL)


def _append_to_log(pid: int, text: str) -> None:
    if text:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/fd/2", "a") as log:
            log.write(text)


def _look(key: str) -> dict[int, RankState]:
    pulses = _pulses(key)
    stacks = _stacks(key, pulses)
    found = {}
    for pulse in pulses:
        with contextlib.suppress(OSError, ValueError, IndexError):  # the process has ended
            state, cpu_s = _process(pulse.pid)
            stack = stacks.get(pulse.rank, "")
            age_s = time.monotonic() - pulse.since_s
            host = os.uname().nodename
            found[pulse.rank] = RankState(
                pulse, host, age_s, state, cpu_s, waits_in_collective(stack), frames_of_loop(stack), stack
            )
    return found


def _pulses(key: str) -> list[Pulse]:
    found = []
    for file in local_files(PULSE, key):
        with contextlib.suppress(OSError, ValueError, TypeError):
            said = json.loads(file.read_text())
            pulse = Pulse(**said | {"doing": Doing(said["doing"])})
            if Path(f"/proc/{pulse.pid}").exists():
                found.append(pulse)
    return sorted(found, key=lambda pulse: pulse.rank)


def _process(pid: int) -> tuple[str, float]:
    """Return the state of a process, see `RankState`, and its CPU time in seconds. Raises OSError: it has ended."""
    found = stat_fields(pid)
    if found is None:
        raise ProcessLookupError(pid)
    state, *fields = found
    cpu_s = (int(fields[10]) + int(fields[11])) / os.sysconf("SC_CLK_TCK")
    if state in "TtZ":
        return state, cpu_s
    states = {state}
    for thread in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(OSError):  # the thread has ended
            states.update((stat_fields(f"{pid}/task/{thread}") or [])[:1])
    return next((letter for letter in "RD" if letter in states), state), cpu_s


def _stacks(key: str, pulses: Collection[Pulse]) -> dict[int, str]:
    """Return the stacks of the ranks' threads by rank: as they answer, and as py-spy sees them if they cannot."""
    asked: dict[int, tuple[Path, int]] = {}
    for pulse in pulses:
        file = local_file(STACKS, key, pulse.rank)
        with contextlib.suppress(OSError, ValueError):
            size = file.stat().st_size
            if _process(pulse.pid)[0] not in "TtZ" and _catches(pulse.pid, signal.SIGUSR1):
                os.kill(pulse.pid, signal.SIGUSR1)
                asked[pulse.rank] = file, size
    answers = {rank: text for rank, text in _grown(asked).items() if text}
    return _seen_by_py_spy([pulse for pulse in pulses if pulse.rank not in answers]) | answers


def _seen_by_py_spy(pulses: Collection[Pulse]) -> dict[int, str]:
    """Read the stacks of processes that cannot write them; return the texts by rank, as faulthandler writes them.

    A rank is missing if py-spy is not installed, is slow, or may not read the memory of other processes.
    """
    reading = {}
    for pulse in pulses:
        command = [str(_PY_SPY), "dump", "--nonblocking", "--full-filenames", "--pid", str(pulse.pid)]
        with contextlib.suppress(OSError):
            reading[pulse.rank] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
    until, texts = time.monotonic() + _STACK_WITHIN_S, dict[int, str]()
    for rank, process in reading.items():
        with process, contextlib.suppress(subprocess.TimeoutExpired):
            try:
                said = process.communicate(timeout=max(until - time.monotonic(), 0.0))[0]
                texts[rank] = as_faulthandler(said.decode(errors="replace"))
            finally:
                process.kill()
    return {rank: text for rank, text in texts.items() if text}


def as_faulthandler(text: str) -> str:
    """Return a dump of py-spy in the format of faulthandler; empty if it has no stack."""
    threads = re.split(r"^Thread ", text, flags=re.MULTILINE)[1:]
    return "\n".join("Thread " + _SPIED_FRAME.sub(r'  File "\2", line \3 in \1', thread) for thread in threads)


def _grown(asked: Mapping[int, tuple[Path, int]]) -> dict[int, str]:
    """Wait until something was appended to each file and none grows any more; return the new text by rank."""
    texts = dict.fromkeys(asked, "")
    for _ in range(round(_STACK_WITHIN_S / _POLL_S)):  # a machine that stands still does not use up the time
        time.sleep(_POLL_S)
        before = texts
        texts = {rank: file.read_bytes()[size:].decode(errors="replace") for rank, (file, size) in asked.items()}
        if texts == before and all(texts.values()):
            break
    return texts


def _catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process handles a signal. If a user's code has removed the handler, the signal would end it."""
    mask = re.search(rb"^SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_bytes(), re.MULTILINE)
    return mask is not None and bool(int(mask[1], 16) >> (number - 1) & 1)


def waits_in_collective(stack: str) -> bool:
    """Whether a thread of a faulthandler text waits for other ranks."""
    for thread in stack.split("\n\n"):
        innermost = _FRAME.search(thread)
        if innermost and (_COLLECTIVES.search(innermost["file"]) or innermost["name"] in _READ_RESULTS):
            return True
    return False


def frames_of_loop(stack: str) -> tuple[str, ...]:
    """Return the innermost calls of the thread that trains, from a faulthandler text."""
    for thread in stack.split("\n\n"):
        if _TRAINS in thread:
            found = list(_FRAME.finditer(thread))[:_MOST_FRAMES]
            return tuple(f"{one['name']} ({one['file']}:{one['line']})" for one in found)
    return ()
