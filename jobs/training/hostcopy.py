"""Memory of the host for one worker's training state: what a save copies, and a resume reads into."""

from __future__ import annotations

from typing import Any

import torch

from jobs.checkpoints import KINDS, Read
from jobs.shardfile import as_bytes
from jobs.training.partitions import Partitions, Piece


class HostCopy:
    """Room for one state of this rank."""

    def __init__(self, partitions: Partitions) -> None:
        pinned = partitions.flats[0].device.type == "cuda"
        self._pieces = partitions.pieces
        self.flats = {
            kind: tuple(torch.zeros(flat.numel(), dtype=torch.float32, pin_memory=pinned) for flat in partitions.flats)
            for kind in KINDS
        }

    @torch.no_grad()
    def take(self, state: dict[str, tuple[torch.Tensor, ...]]) -> None:
        for kind, flats in state.items():
            for kept, living in zip(self.flats[kind], flats, strict=True):
                kept.copy_(living.reshape(-1), non_blocking=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def bytes_of(self, kind: str, piece: Piece) -> Any:
        """A piece's part of one kind as bytes, without a copy."""
        return as_bytes(self.flats[kind][piece.flat].numpy()[piece.offset : piece.offset + piece.slice.numel])

    def reads(self) -> list[Read]:
        """Where every piece of every kind is to be read to."""
        return [Read(kind, piece.slice, self.bytes_of(kind, piece)) for kind in KINDS for piece in self._pieces]
