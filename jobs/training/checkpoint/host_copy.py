"""Memory of the host for one worker's training state: what a save copies, and a resume reads into."""

from __future__ import annotations

import contextlib
import mmap
from typing import Any

import torch

from jobs.run.checkpoints import KINDS, Read
from jobs.storage.tensor_file import as_bytes
from jobs.training.model.partitions import Partitions, Piece


class HostCopy:
    """Room for one state of this rank.

    The memory is mapped, not allocated: pages count once they are written to, and `release` gives them back. For a GPU
    it is pinned and kept. PyTorch's own pinned allocations are rounded up to powers of two: 8 GiB for 4.1.
    """

    def __init__(self, partitions: Partitions) -> None:
        self._on_gpu = partitions.flats[0].device.type == "cuda"
        self._pieces = partitions.pieces
        self._maps: list[mmap.mmap] = []
        self.flats = {kind: tuple(self._room(flat.numel()) for flat in partitions.flats) for kind in KINDS}

    def _room(self, numel: int) -> torch.Tensor:
        """Zeros: (numel,) fp32."""
        memory = mmap.mmap(-1, mapped_bytes(numel), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._maps.append(memory)
        flat = torch.frombuffer(memory, dtype=torch.float32)[:numel]
        if self._on_gpu:
            pin(flat, len(memory))
        return flat

    @torch.no_grad()
    def take(self, state: dict[str, tuple[torch.Tensor, ...]]) -> None:
        for kind, flats in state.items():
            for kept, living in zip(self.flats[kind], flats, strict=True):
                kept.copy_(living.reshape(-1), non_blocking=True)
        if self._on_gpu:
            torch.cuda.synchronize()

    def release(self) -> None:
        """Give the pages back to the kernel; what the copy holds is lost. Pinned memory is kept."""
        if not self._on_gpu and hasattr(mmap, "MADV_DONTNEED"):
            for memory in self._maps:
                memory.madvise(mmap.MADV_DONTNEED)

    def bytes_of(self, kind: str, piece: Piece) -> Any:
        """A piece's part of one kind as bytes, without a copy."""
        return as_bytes(self.flats[kind][piece.flat].numpy()[piece.offset : piece.offset + piece.slice.numel])

    def reads(self) -> list[Read]:
        """Where every piece of every kind is to be read to."""
        return [Read(kind, piece.slice, self.bytes_of(kind, piece)) for kind in KINDS for piece in self._pieces]


def pin(flat: torch.Tensor, num_bytes: int) -> None:
    """Pin mapped memory for the current GPU. Where CUDA refuses, copies are slower and nothing else changes."""
    runtime: Any = torch.cuda
    if int(runtime.cudart().cudaHostRegister(flat.data_ptr(), num_bytes, 0)) != 0:
        with contextlib.suppress(RuntimeError):  # the next kernel would report, and so clears, CUDA's last error
            torch.ones(1, device="cuda").neg_()


def mapped_bytes(numel: int) -> int:
    """Bytes to map for so many fp32 elements: whole pages, at least one. Pure."""
    return max(-(-4 * numel // mmap.PAGESIZE), 1) * mmap.PAGESIZE
