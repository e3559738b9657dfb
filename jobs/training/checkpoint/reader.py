"""Reads the newest complete checkpoint, on any number of workers; all ranks verify it together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from cluster.errors import DataError, StorageError
from jobs.run.checkpoints import Commit, Part, committed_steps, read_commit, read_parts, read_slices, saved_steps
from jobs.run.paths import JobPaths
from jobs.storage import files as storage
from jobs.storage.tensor_file import Damaged, Want, read_ranges
from jobs.training.checkpoint.host_copy import HostCopy
from jobs.training.collectives import from_rank_0, of_all_ranks
from jobs.training.model.partitions import Partitions


@dataclass(frozen=True)
class CheckpointReader:
    """Reads a run's checkpoints on one rank."""

    paths: JobPaths
    partitions: Partitions
    buffers: dict[str, torch.Tensor]
    host: HostCopy
    rank: int
    report: Callable[..., None]

    def restore(self, only: int | None = None) -> Commit | None:
        """Load the newest complete checkpoint, or that of step `only`, into the engine. Every rank must call it.

        Returns:
            Its marker; None if there is no checkpoint.

        Raises:
            DataError: the checkpoint belongs to another model.
            StorageOutage: the storage does not answer now. Skipping the checkpoint would lose its steps.
        """
        for step in self.candidates() if only is None else [only]:
            found, reason = self._described(step)
            if found is not None:
                commit, parts = found
                check_same_model(commit, self.partitions.shapes)
                reason, buffers = self._read(commit, parts)
                if reason is None:
                    self.partitions.load(self.host.flats, commit.optimizer_step)
                    self.host.release()
                    with torch.no_grad():
                        for name, buffer in buffers.items():
                            self.buffers[name].copy_(buffer)
                    return commit
            self.report("warning", f"the checkpoint of step {step} is damaged and passed over: {reason}", step=step)
        return None

    def candidates(self) -> list[int]:
        """List the steps with a marker, newest first, as rank 0 sees them. Every rank must call it."""
        whole = list[int]()
        if self.rank == 0:
            whole = committed_steps(self.paths)
            for step in saved_steps(self.paths):
                if step > max(whole, default=0) and storage.list_names(self.paths.checkpoint(step)):
                    self.report("warning", f"the checkpoint of step {step} was never finished and is passed over")
        return from_rank_0(whole[::-1])

    def _described(self, step: int) -> tuple[tuple[Commit, tuple[Part, ...]] | None, str | None]:
        """Read a marker and the indexes of its parts on rank 0. Every rank gets these, or what is wrong with them."""
        read: tuple[Commit, tuple[Part, ...]] | None = None
        wrong: str | StorageError | None = None
        if self.rank == 0:
            try:
                commit = read_commit(self.paths, step)
                read = (commit, read_parts(self.paths, commit))
            except Damaged as error:
                wrong = str(error)
            except StorageError as error:
                wrong = error
        read, wrong = from_rank_0((read, wrong))
        if isinstance(wrong, StorageError):
            raise wrong
        return read, wrong

    def _read(self, commit: Commit, parts: tuple[Part, ...]) -> tuple[str | None, dict[str, torch.Tensor]]:
        """Read this rank's slices into the host copy, and the buffers.

        Returns:
            What is wrong on any rank, or None if nothing is; and the buffers.

        Raises:
            StorageError: one of the ranks may not read, or the storage does not answer it; raised on all ranks.
        """
        folder = self.paths.checkpoint(commit.step)
        buffers: dict[str, torch.Tensor] = {}
        reason: str | StorageError | None = None
        try:
            read_slices(folder, parts, self.host.reads())
            buffers = read_buffers(folder, parts[0], self.buffers)
        except Damaged as error:
            reason = str(error)
        except StorageError as error:
            reason = error
        reasons = of_all_ranks(reason)
        if failed := next((one for one in reasons if isinstance(one, StorageError)), None):
            raise failed
        return next((one for one in reasons if isinstance(one, str)), None), buffers


def check_same_model(commit: Commit, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise DataError if a checkpoint's parameters are not those of the model."""
    saved = commit.shapes
    other = [
        f"{name} {list(saved.get(name, ())) or 'missing'} -> {list(shapes.get(name, ())) or 'missing'}"
        for name in sorted({*saved, *shapes})
        if tuple(saved.get(name, (-1,))) != tuple(shapes.get(name, (-1,)))
    ]
    if other:
        raise DataError(
            f"the checkpoint of step {commit.step} is of another model than model.path: {len(other)} parameters "
            f"differ, first {'; '.join(other[:3])}"
        )


def read_buffers(folder: str, part: Part, like: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Read the model's buffers from rank 0's part, shaped as `like`, into host memory. Raises Damaged."""
    kept = {
        name: torch.empty(buffer.shape, dtype=buffer.dtype) for name, buffer in like.items() if name in part.buffers
    }
    wants = [
        Want(part.file.offsets[f"buffer:{name}"], tensor.reshape(-1).view(torch.uint8).numpy())
        for name, tensor in kept.items()
    ]
    read_ranges(folder, part.file, wants)
    return kept
