"""Tokenised samples on local disk while their order is decided: flat files of int32, little of it in memory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Samples:
    """All samples of one source, in source order; tokens and labels are memory-mapped."""

    content: npt.NDArray[np.uint64]  # (samples,), equal for samples that say the same
    token_ends: npt.NDArray[np.int64]  # (samples + 1,), sample i is tokens[token_ends[i]:token_ends[i + 1]]
    label_ends: npt.NDArray[np.int64]  # (samples + 1,)
    tokens: npt.NDArray[np.int32]
    labels: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.content)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each sample."""
        return np.diff(self.token_ends)

    def row(self, samples: npt.NDArray[np.int64]) -> dict[str, Any]:
        """The row that holds these samples, in this order, with the columns of `prepared.ROW_SCHEMA`."""
        first, last = samples, samples + 1
        tokens, labels = self.token_ends, self.label_ends
        return {
            "input_ids": np.concatenate([self.tokens[tokens[a] : tokens[b]] for a, b in zip(first, last, strict=True)]),
            "labels": np.concatenate([self.labels[labels[a] : labels[b]] for a, b in zip(first, last, strict=True)]),
            "lengths": (tokens[last] - tokens[first]).tolist(),
            "sample_ids": samples.tolist(),
        }


class Scratch:
    """Appends tables with `blocks.TOKENS_SCHEMA`, bad rows taken out, to files in `folder`. A context manager."""

    def __init__(self, folder: str, name: str) -> None:
        self._paths = [os.path.join(folder, f"{name}-{column}.i32") for column in ("tokens", "labels")]
        self._files = [open(path, "wb") for path in self._paths]  # noqa: SIM115 - closed by `__exit__`
        self._lengths: list[list[npt.NDArray[np.int64]]] = [[], []]
        self._content: list[npt.NDArray[np.uint64]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()

    def append(self, table: Any) -> None:
        self._content.append(table["content"].to_numpy())
        for file, lengths, column in zip(self._files, self._lengths, ("input_ids", "labels"), strict=True):
            for chunk in table[column].chunks:
                file.write(chunk.flatten().to_numpy().tobytes())
                lengths.append(np.diff(chunk.offsets.to_numpy()).astype(np.int64))

    def samples(self) -> Samples:
        """All that was appended; only once the files are closed."""
        token_ends, label_ends = map(_ends, self._lengths)
        content = np.concatenate([np.zeros(0, np.uint64), *self._content])
        tokens, labels = map(_mapped, self._paths)
        return Samples(content, token_ends, label_ends, tokens, labels)


def _ends(lengths: list[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    return np.cumsum(np.concatenate([np.zeros(1, np.int64), *lengths]), dtype=np.int64)


def _mapped(path: str) -> npt.NDArray[np.int32]:
    if not os.path.getsize(path):  # an empty file cannot be mapped
        return np.zeros(0, np.int32)
    return np.memmap(path, dtype=np.int32, mode="r")
