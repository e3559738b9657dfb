"""Records in a local file what a worker's loop does, and dumps the stacks of its threads on SIGUSR1.

The files do not depend on the run's storage. So the driver can distinguish a worker that hangs from one whose metrics
are late. `jobs.training.rank_states` reads them.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from jobs.remedies.hang import Doing, Pulse

PULSE, STACKS = "pulse", "stacks"
_BYTES = 512  # of the record, padded, so that one write replaces it


class PulseWriter:
    """Maintains the files of this process inside of a `with` block; without a key, it writes nothing."""

    def __init__(self, key: str, rank: int) -> None:
        """`key` identifies the driver and cannot be guessed."""
        self._key, self._pulse, self._files = key, Pulse(rank, os.getpid()), contextlib.ExitStack()
        self._handle: int | None = None
        self._steps = 0

    def __enter__(self) -> PulseWriter:
        if self._key:
            with contextlib.suppress(OSError):  # if the disk fails, the run continues, and its hangs are not detected
                stacks = os.fdopen(self._open(STACKS), "w")
                self._files.enter_context(stacks)
                faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=True)
                self._files.callback(faulthandler.unregister, signal.SIGUSR1)
                self._handle = self._open(PULSE)
                self._files.callback(os.close, self._handle)
                self.mark(Doing.OTHER)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle = None
        self._files.close()

    def _open(self, kind: str) -> int:
        path = local_file(kind, self._key, self._pulse.rank)
        path.unlink(missing_ok=True)
        self._files.callback(path.unlink, missing_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)

    def mark(self, doing: Doing, step: int | None = None) -> None:
        """Record what the loop does from now on. Called a few times in each step, so it must be cheap."""
        now, last = time.monotonic(), self._pulse
        took_s = now - last.since_s
        step_s, evaluation_s, general_s = last.longest_step_s, last.longest_evaluation_s, last.longest_general_s
        if last.doing is Doing.STEP:
            self._steps += 1
            if self._steps > 1:  # the first step is slower: it allocates buffers and opens connections
                step_s = max(took_s, step_s or 0.0)
        if last.doing is Doing.EVALUATION:
            evaluation_s = max(took_s, evaluation_s or 0.0)
        if last.doing is Doing.GENERAL:
            general_s = max(took_s, general_s or 0.0)
        number = last.step if step is None else step
        self._pulse = Pulse(last.rank, last.pid, doing, number, now, step_s, evaluation_s, general_s)
        if self._handle is not None:
            with contextlib.suppress(OSError):
                os.pwrite(self._handle, json.dumps(vars(self._pulse)).ljust(_BYTES).encode(), 0)


def local_files(kind: str, key: str) -> Iterator[Path]:
    """Yield the files of all workers on this machine's disk."""
    pattern = local_file(kind, key, "*")
    return pattern.parent.glob(pattern.name)


def local_file(kind: str, key: str, rank: int | str) -> Path:
    """Return the path of a worker's file on this machine's disk."""
    return Path(tempfile.gettempdir()) / f"fleetune-{kind}-{key}-{rank}.json"
