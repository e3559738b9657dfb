"""Saves the training state in the background.

A save copies this rank's state to host memory; the loop waits for nothing else. A thread then writes the copy and its
index. Rank 0's thread waits for the indexes of all ranks and writes the marker. There is one copy: while it is being
written, a rank is `busy`, and the loop puts the next save off.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from cluster.errors import DataError, StorageError
from cluster.text import byte_size
from jobs.run.checkpoints import (
    COMMIT_NAME,
    KINDS,
    Commit,
    Part,
    PartEntry,
    commit_path,
    committed_steps,
    entry_of,
    leftovers,
    part_stem,
    saved_steps,
    to_remove,
)
from jobs.run.paths import JobPaths
from jobs.storage import files as storage
from jobs.storage.tensor_file import Tensor, write_shard
from jobs.training.checkpoint.host_copy import HostCopy
from jobs.training.collectives import from_rank_0, of_all_ranks
from jobs.training.model.partitions import Partitions
from jobs.training.reporter import Reporter
from jobs.training.worker_context import WorkerContext

_POLL_S = (0.05, 1.0)  # first and longest pause of rank 0 between looks for the other ranks' parts
_SAY_EVERY_S = 20.0
_GIVE_UP_S = 1200.0  # less than the half hour after which a collective of the other ranks times out
GOES_ON: Final = "training goes on"  # what follows a checkpoint that could not be written, for people
_LAST_WRITE_S = 60.0  # wait at the end for the checkpoint that is being written
# All dtypes that `safetensors.torch` can load, with their names in the format.
DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8", torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2: "F8_E5M2", torch.float8_e5m2fnuz: "F8_E5M2FNUZ", torch.complex64: "C64",
}  # fmt: skip


def check_buffers(buffers: dict[str, torch.Tensor]) -> None:
    """Raise DataError if a checkpoint cannot hold one of the model's buffers."""
    for name, buffer in buffers.items():
        if buffer.dtype not in DTYPES:
            raise DataError(
                f"the buffer {name} of the model is {_short(buffer.dtype)}, and a checkpoint holds only "
                f"{', '.join(map(_short, DTYPES))}: convert this tensor of its weights, or choose another model"
            )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@dataclass
class Writing:
    """One checkpoint that is being written."""

    step: int
    began_at: float = field(default_factory=time.monotonic)
    part_done: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)
    abandoned: threading.Event = field(default_factory=threading.Event)
    error: str | None = None


class Checkpointer:
    """Writes one rank's checkpoints. All ranks must call methods that "every rank must call" in the same order."""

    def __init__(
        self,
        paths: JobPaths,
        partitions: Partitions,
        host: HostCopy,
        worker: WorkerContext,
        keep: int,
        reporter: Reporter,
    ) -> None:
        """Agree on the token of this worker group. Every rank must call it.

        Args:
            host: while this rank is busy, only this object may write into it.
            keep: number of newest checkpoints that are kept, beside the best.
        """
        self._paths, self._partitions, self._host, self._keep = paths, partitions, host, keep
        self._reporter, self._report = reporter, reporter.event
        self._rank, self._world_size = worker.rank, worker.world_size
        token = from_rank_0(secrets.token_hex(4))
        self._stem = [part_stem(number, worker.world_size, token) for number in range(worker.world_size)]
        self._writing: Writing | None = None
        self._copied = False  # the host copy holds a state
        self.last_began_at = time.monotonic()  # start of the newest save; at first, of the worker group

    @property
    def busy(self) -> bool:
        """Whether this rank is still writing."""
        return self._writing is not None and not self._writing.done.is_set()

    @property
    def failed(self) -> bool:
        """Whether this rank's write has failed, and `give_up` has not been called for it."""
        return self._writing is not None and self._writing.error is not None

    @property
    def under_way(self) -> str:
        """The newest write, as a clause for people."""
        assert self._writing is not None
        seconds = time.monotonic() - self._writing.began_at
        return f"that of step {self._writing.step} is still being written ({seconds:.0f} s)"

    def save(self, step: int, fields: dict[str, Any], buffers: dict[str, torch.Tensor]) -> None:
        """Copy the state of `step` and write it in a thread. Every rank must call it, and none may be busy.

        Args:
            fields: the run's fields of `Commit`.
            buffers: the model's buffers, equal on all ranks; rank 0 writes them.
        """
        assert not self.busy
        self._host.take(self._partitions.state())
        self._copied = True
        fields = {
            **fields,
            "optimizer_step": self._partitions.optimizer_step(),
            "shapes": self._partitions.shapes,
        }
        tensors, part = self._part(buffers if self._rank == 0 else {})
        writing = self._writing = Writing(step)
        self.last_began_at = writing.began_at
        arguments = (writing, tensors, part, fields)
        threading.Thread(target=self._write, args=arguments, name="checkpoint", daemon=True).start()

    def _part(self, buffers: dict[str, torch.Tensor]) -> tuple[list[Tensor], dict[str, Any]]:
        tensors = [
            Tensor(
                f"{kind}:{piece.slice.parameter}",
                "F32",
                (piece.slice.numel,),
                self._host.bytes_of(kind, piece),
            )
            for kind in KINDS
            for piece in self._partitions.pieces
        ]
        described = {}
        for name, buffer in buffers.items():
            kept = buffer.detach().to("cpu", copy=True).contiguous()
            dtype, shape = DTYPES[kept.dtype], tuple(kept.shape)
            tensors.append(Tensor(f"buffer:{name}", dtype, shape, kept.reshape(-1).view(torch.uint8).numpy()))
            described[name] = (dtype, shape)
        slices = tuple(piece.slice for piece in self._partitions.pieces)
        return tensors, {"rank": self._rank, "slices": slices, "buffers": described}

    def _write(self, writing: Writing, tensors: list[Tensor], part: dict[str, Any], fields: dict[str, Any]) -> None:
        """Write this rank's part; on rank 0, then write the marker and remove old checkpoints. Runs in the thread."""
        folder, stem = self._paths.checkpoint(writing.step), self._stem[self._rank]
        try:
            file = write_shard(folder, f"{stem}.safetensors", tensors)
            description = Part(file=file, **part).model_dump_json().encode()
            if not writing.abandoned.is_set():
                _write_surely(storage.join(folder, f"{stem}.json"), description)
            writing.part_done.set()
            if self._rank == 0:
                self._commit(writing, fields)
            elif writing.abandoned.is_set():
                self._remove_own_part(writing.step)
        except Exception as error:
            writing.error = str(error) or type(error).__name__
            self._remove_own_part(writing.step)
        finally:
            writing.part_done.set()
            writing.done.set()

    def _commit(self, writing: Writing, fields: dict[str, Any]) -> None:
        entries = self._parts_of_all_ranks(writing)
        if entries is None:
            self._remove_own_part(writing.step)
            return
        size = sum(int(entry[1]) for entry in entries)
        commit = Commit(
            step=writing.step,
            num_workers=self._world_size,
            parts=tuple(entry for entry, _ in entries),
            bytes=size,
            **fields,
        )
        self._reporter.flush()  # a run that resumes here must find the metrics of every earlier step
        try:
            storage.write_bytes(commit_path(self._paths, writing.step), commit.model_dump_json().encode())
        except StorageError:  # an object store may have stored it despite the error
            self._remove_marker(writing.step)
            raise
        if writing.abandoned.is_set():  # abandoned in the meantime: parts of other ranks may be gone
            self._remove_marker(writing.step)
            self._remove_own_part(writing.step)
            return
        took_s = time.monotonic() - writing.began_at
        self._report(
            "checkpoint",
            f"checkpoint of step {writing.step}: {byte_size(size)} in {took_s:.1f} s, in the background",
            step=writing.step,
            bytes=size,
            seconds=took_s,
        )
        self._clean(commit)

    def _parts_of_all_ranks(self, writing: Writing) -> list[tuple[PartEntry, int]] | None:
        """Wait for the index of every rank; None if the save was abandoned."""
        folder = self._paths.checkpoint(writing.step)
        missing, entries = set(range(self._world_size)), {}
        pause = _POLL_S[0]
        while not writing.abandoned.is_set():
            names = set(storage.list_names(folder))
            for rank in [rank for rank in missing if f"{self._stem[rank]}.json" in names]:
                content = storage.read_bytes(storage.join(folder, f"{self._stem[rank]}.json"))
                try:
                    described = Part.model_validate_json(content)
                except ValueError:  # sftp, for one, shows a file while it is being written
                    continue
                entries[rank] = (entry_of(f"{self._stem[rank]}.json", content), described.file.bytes)
                missing.discard(rank)
            if not missing:
                return [entries[rank] for rank in range(self._world_size)]
            writing.abandoned.wait(pause)
            pause = min(pause * 1.5, _POLL_S[1])
        return None

    def _clean(self, commit: Commit) -> None:
        """Remove checkpoints that are no longer kept. A failure to remove them is ignored."""
        best = commit.best.step if commit.best else None
        with contextlib.suppress(StorageError):
            self._remove_dead_parts(commit)
            whole = committed_steps(self._paths)
            gone = to_remove(whole, self._keep, best, commit.step)
            for step in [*gone, *leftovers(saved_steps(self._paths), whole)]:
                # Remove the marker first: a partly removed checkpoint must not look complete.
                storage.remove_file(commit_path(self._paths, step))
                storage.remove_dir(self._paths.checkpoint(step))

    def _remove_dead_parts(self, commit: Commit) -> None:
        """Remove parts that a killed worker group has left in the directory of this checkpoint."""
        folder, own = self._paths.checkpoint(commit.step), tuple(f"{stem}." for stem in self._stem)
        for name in storage.list_names(folder):
            if name != COMMIT_NAME and not name.startswith(own):
                storage.remove_file(storage.join(folder, name))

    def remove_after(self, step: int) -> None:
        """Remove the checkpoints of later steps, newest first. Every rank must call it, and none may be busy.

        If the process ends in between, a resume from the newest remaining one decides again to go back.
        """
        assert not self.busy
        if self._rank == 0:
            for later in [one for one in saved_steps(self._paths) if one > step][::-1]:
                storage.remove_file(commit_path(self._paths, later))
                storage.remove_dir(self._paths.checkpoint(later))

    def set_aside(self, step: int) -> None:
        """Move a checkpoint to `JobPaths.set_aside`, in place of the one there. Every rank must call it; none is busy.

        The marker comes last. If the process ends before that, the rest is moved when the run decides again.
        """
        assert not self.busy
        if self._rank != 0:
            return
        kept, folder = self._paths.set_aside, self._paths.checkpoint(step)
        if step in committed_steps(kept) and not storage.exists(commit_path(self._paths, step)):
            return  # the process ended after this and before the run began again
        if committed_steps(kept):
            storage.remove_dir(kept.checkpoints)
        for name in sorted(storage.list_names(folder), key=lambda name: name == COMMIT_NAME):
            storage.move_file(storage.join(folder, name), storage.join(kept.checkpoint(step), name))
        storage.remove_dir(folder)

    def _remove_marker(self, step: int) -> None:
        with contextlib.suppress(StorageError):
            storage.remove_file(commit_path(self._paths, step))

    def _remove_own_part(self, step: int) -> None:
        for ending in ("json", "safetensors"):
            with contextlib.suppress(StorageError):
                storage.remove_file(storage.join(self._paths.checkpoint(step), f"{self._stem[self._rank]}.{ending}"))

    def give_up(self, follows: str = GOES_ON) -> None:
        """Abandon the present write, because some rank's has failed, and report why. Every rank must call it.

        Args:
            follows: a clause for people: what the run does now.
        """
        writing = self._writing
        self._writing = None
        reasons = of_all_ranks(writing.error if writing is not None else None)
        if writing is None:
            return
        writing.abandoned.set()
        if writing.part_done.is_set() and writing.done.is_set():
            if self._rank == 0:  # its thread may have committed before another rank failed
                self._remove_marker(writing.step)
            self._remove_own_part(writing.step)
        for rank, reason in enumerate(reasons):
            if reason is not None:
                self._report(
                    "warning",
                    f"the checkpoint of step {writing.step} could not be written (rank {rank}: {reason}); the one "
                    f"before it is kept, and {follows}",
                    step=writing.step,
                )
                return

    def settle(self, follows: str = GOES_ON) -> bool:
        """Wait until the present write, if any, has ended. Returns whether it is complete. Every rank must call it.

        Args:
            follows: see `give_up`.
        """
        writing = self._writing
        if writing is None:
            return True
        self._wait(writing, writing.part_done)
        if any(of_all_ranks(writing.error)):
            self.give_up(follows)
            return False
        if self._rank == 0:
            self._wait(writing, writing.done)
        if from_rank_0(writing.error) is not None:
            self.give_up(follows)
            return False
        self._writing = None
        return True

    def rest(self) -> None:
        """Return the memory of the host copy once nothing is being written. Only the loop's thread may call it."""
        if self._copied and not self.busy:
            self._host.release()
            self._copied = False

    def finish(self) -> None:
        """Wait a while for this rank's present write, if any, before the process or the trial ends."""
        if self._writing is not None:
            self._writing.done.wait(_LAST_WRITE_S)

    def _wait(self, writing: Writing, event: threading.Event) -> None:
        while not event.wait(_SAY_EVERY_S):
            waited_s = time.monotonic() - writing.began_at
            if waited_s > _GIVE_UP_S:
                writing.error = f"the storage did not take it within {waited_s / 60:.0f} minutes"
                return
            self._report("phase", f"writing the checkpoint of step {writing.step} ({waited_s:.0f} s)", phase="save")


def _write_surely(path: str, content: bytes) -> None:
    """Write a file. An error counts only if the file is not stored: other ranks may have read it already."""
    try:
        storage.write_bytes(path, content)
    except StorageError as error:
        with contextlib.suppress(StorageError):
            if storage.read_bytes(path) == content:
                return
        raise error
