"""Turns rows into tensors, and tensors into logits. `jobs.training.loop.loss` turns logits into a loss."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from jobs.data.prepared import IGNORE_INDEX
from jobs.spec.finetune import Task
from jobs.training.model.adapters import base_of
from jobs.training.model.pooling import reads_the_end, with_one_end

Ints = npt.NDArray[np.int64]
# Tokens of the placeholder row for a worker without rows, and of the shortest row of a classifier.
_EMPTY_TOKENS = 8


@dataclass(frozen=True)
class Batch:
    """One micro-batch on the device."""

    inputs: dict[str, torch.Tensor]  # arguments of the model's forward, (rows, tokens) int64 each
    # Causal-lm: (rows, columns) next tokens; classification: (rows,) classes. IGNORE_INDEX marks no target.
    targets: torch.Tensor
    # Causal-lm: (columns,) the places that are a target in at least one row of the batch. Logits are computed only for
    # these, because the vocabulary is the widest layer and a prompt's tokens need no logits.
    columns: torch.Tensor | None = None

    def with_few_columns(self, most: int) -> Batch:
        """Return the batch with at most `most` of its columns, evenly spaced."""
        if self.columns is None:
            return self
        every = -(-len(self.columns) // most)
        return replace(self, targets=self.targets[:, ::every], columns=self.columns[::every])


def collate(rows: Any, task: Task, pad_token_id: int, device: torch.device, unpack: bool = False) -> Batch:
    """Pad rows to the longest and move them to the device.

    Args:
        rows: pyarrow.Table with ROW_SCHEMA; an empty table gives one row without a target.
        unpack: put every sample of a packed row into a separate row; the targets and their order stay the same.
    """
    tokens = [np.asarray(row, dtype=np.int64) for row in _lists(rows, "input_ids")]
    labels = [np.asarray(row, dtype=np.int64) for row in _lists(rows, "labels")]
    lengths = [np.asarray(row, dtype=np.int64) for row in _lists(rows, "lengths")]
    if not tokens:
        tokens = [np.full(_EMPTY_TOKENS, pad_token_id, dtype=np.int64)]
        labels = [np.full(_EMPTY_TOKENS if task == "causal-lm" else 1, IGNORE_INDEX, dtype=np.int64)]
        lengths = [np.array([_EMPTY_TOKENS])]
    if task == "causal-lm":
        if unpack:
            tokens, labels = _cut(tokens, lengths), _cut(labels, lengths)
            lengths = [np.array([len(sample)]) for sample in tokens]
        inputs, *targets = _causal_arrays(tokens, labels, lengths, pad_token_id)
    else:
        # The minimum length is for CANINE, which shortens a text to a quarter and fails on shorter ones.
        mask = _padded([np.ones(len(row), dtype=np.int64) for row in tokens], 0, _EMPTY_TOKENS)
        inputs = {"input_ids": _padded(tokens, pad_token_id, _EMPTY_TOKENS), "attention_mask": mask}
        targets = [np.concatenate(labels)]
    named = {name: _tensor(value, device) for name, value in inputs.items()}
    return Batch(named, *(_tensor(value, device) for value in targets))


def _causal_arrays(
    tokens: list[Ints], labels: list[Ints], lengths: list[Ints], pad_token_id: int
) -> tuple[dict[str, Ints], Ints, Ints]:
    """Return a batch's inputs, targets and columns."""
    # No attention mask is needed: padding follows all real tokens, and a causal model never looks ahead.
    inputs = {"input_ids": _padded(tokens, pad_token_id)}
    if any(len(row) > 1 for row in lengths):
        # Without a mask, the model separates packed samples by their positions. Rows of one sample get no positions,
        # because some types (RoBERTa) do not count from 0 and compute their own.
        width = inputs["input_ids"].shape[1]
        inputs["position_ids"] = np.stack([_positions(row, width) for row in lengths])
    shifted = _padded([np.append(row[1:], IGNORE_INDEX) for row in labels], IGNORE_INDEX)
    columns = np.flatnonzero((shifted != IGNORE_INDEX).any(0))
    columns = columns if len(columns) else np.zeros(1, dtype=np.int64)
    return inputs, shifted[:, columns], columns


def model_logits(model: torch.nn.Module, batch: Batch, task: Task) -> torch.Tensor:
    """Compute the logits for the batch's targets: (rows, columns, vocabulary) for causal-lm, else (rows, classes)."""
    inner, prompt = base_of(getattr(model, "module", model))
    known = inspect.signature(inner.forward).parameters.keys()
    if task != "causal-lm":
        inputs = batch.inputs
        if reads_the_end(inner):
            inputs = with_one_end(inputs, inner.config.eos_token_id, inner.config.pad_token_id)
        if "attention_mask" not in known:  # FNet treats padding as text, so its batches have one row: cut the padding
            inputs = {"input_ids": inputs["input_ids"][:, : int(inputs["attention_mask"].sum(1).max())]}
        options = {**inputs, "use_cache": False}  # a decoder would keep all keys and values to the end of the pass
        logits: torch.Tensor = model(**{name: value for name, value in options.items() if name in known}).logits
        return logits
    # Some models take no positions (Bloom, MPT, Mamba); they treat packed samples as one text.
    inputs = {name: value for name, value in batch.inputs.items() if name != "position_ids" or name in known}
    assert batch.columns is not None
    columns = batch.columns + prompt
    # No cache: with a cache, transformers ignores the borders of packed samples.
    keeps_few = "logits_to_keep" in known
    logits = model(**inputs, use_cache=False, **({"logits_to_keep": columns} if keeps_few else {})).logits
    return logits if keeps_few else logits[:, columns]


def _lists(rows: Any, column: str) -> list[npt.NDArray[np.int32]]:
    chunk = rows[column].combine_chunks()
    values, offsets = chunk.values.to_numpy(), chunk.offsets.to_numpy()
    return [values[low:high] for low, high in pairwise(offsets)]


def _cut(rows: list[Ints], lengths: list[Ints]) -> list[Ints]:
    """Split rows into their samples, in order."""
    pairs = zip(rows, lengths, strict=True)
    return [sample for row, counts in pairs for sample in np.split(row, np.cumsum(counts)[:-1])]


def _padded(rows: list[Ints], fill: int, width: int = 0) -> Ints:
    out = np.full((len(rows), max(width, *map(len, rows))), fill, dtype=np.int64)
    for number, row in enumerate(rows):
        out[number, : len(row)] = row
    return out


def _positions(lengths: Ints, width: int) -> Ints:
    """Return positions that start again at each sample; padding continues the last sample."""
    stretched = lengths.copy()
    stretched[-1] += width - lengths.sum()
    return np.concatenate([np.arange(length) for length in stretched])


def _tensor(array: Ints, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device, non_blocking=True)
