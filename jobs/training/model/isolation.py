"""Tests on the model itself whether it keeps packed samples apart, because a list of model types could be wrong.

So it is decided whether a run trains packed rows as they are; a run warns if packing or padding changes the results.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
import torch.distributed as dist

from cluster.errors import DataError
from jobs.data.prepared import IGNORE_INDEX, ROW_SCHEMA
from jobs.spec.finetune import Spec, Task
from jobs.training.model.batch import collate, model_logits
from jobs.training.reporter import Reporter
from jobs.training.worker_context import WorkerContext

_TOKENS = 128  # tokens of a trial row; cheap even on a CPU, but too short to reach sliding windows of thousands
_ROWS = 2
# Tokens of the vocabulary that are compared. One hidden state gives all logits of a target, so a sample is enough.
_COMPARED_TOKENS = 4096
# Numbers of padding tokens that are tried. 1 is included because some types (Funnel) pool tokens in pairs.
_MORE_PADDING = (1, 4)
_LEAST_TOKENS = 8  # of a trial row
# Vocabulary of a configuration that states none: CANINE reads any character of Unicode.
_ANY_VOCABULARY = 256
_SEED = 0
# Largest difference between the logits of a packed sample and of the sample alone, relative to the spread of logits
# between tokens. Another order of summation stays below it; positions that are off by tens of tokens come near 1.
_TOLERANCE = {torch.float32: 1e-2, torch.float16: 3e-2, torch.bfloat16: 1e-1}
# Largest change of logits by later tokens, relative to the size of logits. Tiny bidirectional models with random
# weights change them by 1.5e-3 to 4e-3. The causal types of transformers 5.24 do not change one bit; the tolerance
# allows for experts, whose sums may be in another order.
_UNSEEN = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2}


def rows_are_unpacked(spec: Spec, worker: WorkerContext, model: Any, pad_token_id: int, reporter: Reporter) -> bool:
    """Test on the model whether each sample of a packed row needs a separate row. Every rank must call it.

    Args:
        model: the DeepSpeed engine.

    Raises:
        DataError: a language model sees the tokens that it has to predict.
    """
    rows = max(spec.train.per_device_train_batch_size, spec.eval.per_device_eval_batch_size)
    kind, task = model.module.config.model_type, spec.model.task

    def holds(proof: Callable[..., bool], **more: Any) -> bool:
        """Return whether the proof succeeds on every rank. All ranks get the same result."""
        failed = torch.tensor(float(not proof(model, pad_token_id, worker.device, rows, spec.data.seq_len, **more)))
        failed = failed.to(worker.device)
        dist.all_reduce(failed)
        return not bool(failed > 0)

    if task == "causal-lm" and not holds(later_tokens_are_unseen):
        raise DataError(
            f"model.path: a model of type {kind} reads a text in both directions. It would see each token that it has "
            "to predict, so its loss would mean nothing. Choose a causal model"
        )
    if spec.packed and holds(packed_samples_are_isolated):
        return False
    if spec.packed:
        reporter.event(
            "warning",
            f"it is not proved that a model of type {kind} keeps packed samples apart, so every sample is trained in a "
            "separate row. The steps are the same, with more padding and memory. To prepare such rows, set "
            "data.packing: false",
        )
    if (spec.packed or rows > 1) and not holds(padding_is_ignored, task=task):
        packing = "data.packing: false, " if spec.packed else ""
        reporter.event(
            "warning",
            f"padding behind a text changes what a model of type {kind} computes. For losses without padding, set "
            f"{packing}train.per_device_train_batch_size: 1 and eval.per_device_eval_batch_size: 1",
            padding=True,
        )
    return spec.packed


def packed_samples_are_isolated(
    model: torch.nn.Module, pad_token_id: int, device: torch.device, rows: int, seq_len: int = _TOKENS
) -> bool:
    """Whether a packed sample gets the logits that it gets alone, whatever precedes it in the row.

    There are three forward passes without gradient, in eval mode, over rows of three random samples, collated as in
    training. The first takes the rows unchanged. In the second, every token of the first samples is changed; the other
    samples' logits must not change by one bit. The third has a row for each sample and must give nearly the same
    logits. A model with equal logits for all tokens proves nothing, and counts as not isolated.

    Under ZeRO-3 every rank must call it with the same arguments, because the forward passes gather weights. The result
    is only this rank's; the caller combines the results.

    Args:
        model: a causal-lm of transformers, or the DeepSpeed engine around it.
        rows: most rows of a forward pass in training or evaluation; the trial uses at most two.
        seq_len: most tokens of a row, at least 8; the trial uses at most 128.
    """
    trial = _trial_for(model, rows, seq_len)
    packed = _scored(model, trial.rows, pad_token_id, device)
    changed = _scored(model, trial.changed, pad_token_id, device)
    alone = _scored(model, trial.rows, pad_token_id, device, unpack=True)
    first = torch.from_numpy(trial.first).to(device)
    unmoved = torch.equal(packed[~first], changed[~first])
    moved = not torch.equal(packed[first], changed[first])
    return unmoved and moved and _alike(packed, alone)


def later_tokens_are_unseen(
    model: torch.nn.Module, pad_token_id: int, device: torch.device, rows: int, seq_len: int = _TOKENS
) -> bool:
    """Whether a token's logits stay the same if all tokens in the second half of its sample change.

    A bidirectional model sees the tokens that it has to predict. There are two forward passes. For the arguments, see
    `packed_samples_are_isolated`.
    """
    trial = _trial_for(model, rows, seq_len)
    as_they_are = _scored(model, trial.halves, pad_token_id, device)
    changed = _scored(model, trial.halves_changed, pad_token_id, device)
    error = (changed.float() - as_they_are.float()).square().mean(1).sqrt().max()
    return bool(error <= _UNSEEN[changed.dtype] * as_they_are.float().square().mean().sqrt())


def padding_is_ignored(
    model: torch.nn.Module,
    pad_token_id: int,
    device: torch.device,
    rows: int,
    seq_len: int = _TOKENS,
    task: Task = "causal-lm",
) -> bool:
    """Whether samples in separate rows get nearly the same logits if more padding follows them.

    There are three forward passes. For arguments and rules, see `packed_samples_are_isolated`. With their padding, rows
    are not longer than in training, because a model may have no more positions.
    """
    num_tokens = min(max(seq_len - _MORE_PADDING[-1], _LEAST_TOKENS), _TOKENS)
    trial, most = _trial_for(model, rows, num_tokens), seq_len - num_tokens
    table = trial.rows if task == "causal-lm" else _labelled(trial.rows, pad_token_id)
    some, *more = (
        _scored(model, table, pad_token_id, device, task, unpack=True, padding=padding)
        for padding in (0, *(number for number in _MORE_PADDING if number <= most))
    )
    return all(_alike(one, some) for one in more)


def _alike(packed: torch.Tensor, alone: torch.Tensor) -> bool:
    """Whether no target's logits differ much, relative to the spread of logits between targets.

    Their size would be the wrong measure: many models add the same large offset to all tokens, which hides an error.
    """
    tolerance = _TOLERANCE[packed.dtype]
    rounding = torch.finfo(packed.dtype).eps * alone.float().square().mean().sqrt()
    signal = (alone.float() - alone.float().mean(0)).square().mean().sqrt()
    error = (packed.float() - alone.float()).square().mean(1).sqrt().max()
    return bool(error <= tolerance * signal + rounding)


@torch.no_grad()
def _scored(
    model: torch.nn.Module,
    rows: pa.Table,
    pad_token_id: int,
    device: torch.device,
    task: Task = "causal-lm",
    unpack: bool = False,
    padding: int = 0,
) -> torch.Tensor:
    """Return the logits of all targets in the order of samples: (targets, classes or evenly spaced vocabulary)."""
    batch = collate(rows, task, pad_token_id, device, unpack)
    fills = {"input_ids": pad_token_id, "attention_mask": 0}
    longer = {
        name: torch.nn.functional.pad(batch.inputs[name], (0, padding), value=value)
        for name, value in fills.items()
        if name in batch.inputs
    }
    was_training = model.training
    model.eval()
    try:
        logits = model_logits(model, replace(batch, inputs={**batch.inputs, **longer}), task)
    finally:
        model.train(was_training)
    every = -(-logits.shape[-1] // _COMPARED_TOKENS)
    return logits[..., ::every][batch.targets != IGNORE_INDEX]


@dataclass(frozen=True)
class _Trial:
    """Tables with ROW_SCHEMA, three samples a row. Every token except a sample's first one is a target."""

    rows: pa.Table
    changed: pa.Table  # `rows` with another token in every place of the first samples
    first: npt.NDArray[np.bool_]  # (targets,) whether the target belongs to the first sample of its row
    halves: pa.Table  # one sample a row; the targets are the tokens of its first half except the first one
    halves_changed: pa.Table  # `halves` with other tokens in the second halves


def _trial_for(model: torch.nn.Module, most_rows: int, seq_len: int) -> _Trial:
    config: Any = getattr(model, "module", model).config
    vocab_size = int(getattr(config.get_text_config(), "vocab_size", _ANY_VOCABULARY))
    num_tokens, num_rows = min(seq_len, _TOKENS), min(most_rows, _ROWS)
    draw = np.random.default_rng(_SEED)
    lengths = [_lengths(num_tokens, number) for number in range(num_rows)]
    rows = [draw.integers(vocab_size, size=sum(row)) for row in lengths]
    changed = [row.copy() for row in rows]
    for row, (first, *_) in zip(changed, lengths, strict=True):
        row[:first] = (row[:first] + draw.integers(1, vocab_size, size=first)) % vocab_size
    is_first = np.concatenate([np.arange(sum(row) - 3) < row[0] - 1 for row in lengths])
    half = num_tokens // 2
    texts = [draw.integers(vocab_size, size=num_tokens) for _ in range(num_rows)]
    others = [np.append(row[:half], (row[half:] + 1) % vocab_size) for row in texts]
    return _Trial(
        _table(rows, lengths), _table(changed, lengths), is_first, _halves(texts, half), _halves(others, half)
    )


def _labelled(packed: pa.Table, pad_token_id: int) -> pa.Table:
    """Turn each row into one text with a class. The texts differ in length and contain no pad token."""
    rows = [np.asarray(row) for row in packed["input_ids"].to_pylist()]
    rows = [np.where(row == pad_token_id, (row + 1) % (row.max() + 1), row) for row in rows]
    texts = [row[: len(row) - _MORE_PADDING[-1] * number] for number, row in enumerate(rows)]
    return _as_table(texts, [np.zeros(1, np.int64) for _ in texts], [[len(text)] for text in texts])


def _lengths(num_tokens: int, number: int) -> list[int]:
    """Return the tokens of three samples, at least 2 each. The second row has other borders, and ends with padding."""
    second, third = num_tokens // 4, num_tokens // 3
    return [num_tokens - second - third - number, second, third]


def _halves(rows: list[npt.NDArray[np.int64]], half: int) -> pa.Table:
    labels = [np.where(np.arange(len(row)) < half, row, IGNORE_INDEX) for row in rows]
    for row in labels:
        row[0] = IGNORE_INDEX
    return _as_table(rows, labels, [[len(row)] for row in rows])


def _table(rows: list[npt.NDArray[np.int64]], lengths: list[list[int]]) -> pa.Table:
    labels = [row.copy() for row in rows]
    for row, counts in zip(labels, lengths, strict=True):
        row[np.cumsum([0, *counts[:-1]])] = IGNORE_INDEX
    return _as_table(rows, labels, lengths)


def _as_table(
    rows: list[npt.NDArray[np.int64]], labels: list[npt.NDArray[np.int64]], lengths: list[list[int]]
) -> pa.Table:
    samples = [list(range(len(counts))) for counts in lengths]
    columns = {"input_ids": rows, "labels": labels, "lengths": lengths, "sample_ids": samples}
    return pa.table(columns, schema=ROW_SCHEMA)
