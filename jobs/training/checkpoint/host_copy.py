"""Host memory for one worker's training state: a save copies into it, and a resume reads into it."""

from __future__ import annotations

import contextlib
import mmap
import weakref
from typing import Any

import torch

from jobs.run.checkpoints import KINDS, Read
from jobs.storage.tensor_file import as_bytes
from jobs.training.model.partitions import Partitions, Piece


class HostCopy:
    """Host memory that can hold one state of this rank.

    The memory is mapped, not allocated: a page takes memory once it is written to, and `release` returns the pages. For
    a GPU it is pinned and kept. PyTorch would round pinned allocations up to powers of two: 8 GiB for 4.1.
    """

    def __init__(self, partitions: Partitions) -> None:
        self._on_gpu = partitions.flats[0].device.type == "cuda"
        self._pieces = partitions.pieces
        self._maps: list[mmap.mmap] = []
        self._pinned: list[int] = []  # addresses
        # Before the memory is unmapped: a gang of trials has one such object after another.
        weakref.finalize(self, _unpin, self._pinned).atexit = False
        self.flats = {kind: tuple(self._room(flat.numel()) for flat in partitions.flats) for kind in KINDS}

    def _room(self, numel: int) -> torch.Tensor:
        """Map zeros: (numel,) fp32."""
        memory = mmap.mmap(-1, mapped_bytes(numel), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._maps.append(memory)
        flat = torch.frombuffer(memory, dtype=torch.float32)[:numel]
        if self._on_gpu and pin(flat, len(memory)):
            self._pinned.append(flat.data_ptr())
        return flat

    @torch.no_grad()
    def take(self, state: dict[str, tuple[torch.Tensor, ...]]) -> None:
        for kind, flats in state.items():
            for kept, living in zip(self.flats[kind], flats, strict=True):
                kept.copy_(living.reshape(-1), non_blocking=True)
        if self._on_gpu:
            torch.cuda.synchronize()

    def release(self) -> None:
        """Return the pages to the kernel, which discards the copy. Pinned memory is kept."""
        if not self._on_gpu and hasattr(mmap, "MADV_DONTNEED"):
            for memory in self._maps:
                memory.madvise(mmap.MADV_DONTNEED)

    def bytes_of(self, kind: str, piece: Piece) -> Any:
        """Return the bytes of a piece, for one kind, without a copy."""
        return as_bytes(self.flats[kind][piece.flat].numpy()[piece.offset : piece.offset + piece.slice.numel])

    def reads(self) -> list[Read]:
        """List the reads that fill this memory with every piece of every kind."""
        return [Read(kind, piece.slice, self.bytes_of(kind, piece)) for kind in KINDS for piece in self._pieces]


def pin(flat: torch.Tensor, num_bytes: int) -> bool:
    """Pin mapped memory for the current GPU. Returns False if CUDA refuses: then copies are slower."""
    runtime: Any = torch.cuda
    if int(runtime.cudart().cudaHostRegister(flat.data_ptr(), num_bytes, 0)) == 0:
        return True
    with contextlib.suppress(RuntimeError):  # the next kernel reports CUDA's last error, which clears it
        torch.ones(1, device="cuda").neg_()
    return False


def _unpin(addresses: list[int]) -> None:
    runtime: Any = torch.cuda
    for address in addresses:
        runtime.cudart().cudaHostUnregister(address)


def mapped_bytes(numel: int) -> int:
    """Return the bytes to map for `numel` fp32 elements: whole pages, at least one. Pure."""
    return max(-(-4 * numel // mmap.PAGESIZE), 1) * mmap.PAGESIZE
