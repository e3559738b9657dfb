"""Scores the held-out rows on all workers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from cluster.errors import DataError, MetricFailed
from jobs.data.order.row_order import shares
from jobs.data.prepared import IGNORE_INDEX, Split
from jobs.planning.memory import rows_within
from jobs.spec.finetune import Spec
from jobs.training.collectives import from_rank_0, on_rank_0
from jobs.training.loop.loss import loss_sum
from jobs.training.loop.metrics import (
    ClassCounter,
    Confusion,
    EvalPrediction,
    Sums,
    apply_own,
    confusion_of,
    metrics_of,
    own_functions,
    with_own,
)
from jobs.training.model.batch import Batch, collate, model_logits
from jobs.training.worker_context import WorkerContext

Pair = tuple[npt.NDArray[Any], npt.NDArray[Any]]  # see `EvalPrediction`


@dataclass(frozen=True)
class Evaluator:
    """Scores the rows of a split: held-out rows, or general text.

    Attributes:
        metrics: names of metrics as in the spec's eval.metrics.
    """

    spec: Spec
    split: Split
    metrics: tuple[str, ...]
    pad_token_id: int
    unpack: bool = False  # score each sample of a packed row in a separate row

    @torch.no_grad()
    def score(self, engine: torch.nn.Module, worker: WorkerContext) -> tuple[dict[str, float], Confusion | None]:
        """Return eval_* and the confusion of all rows. Every rank must call it and gets the same values.

        Each rank scores its share. A rank that has finished its share processes empty rows until the others finish,
        because ZeRO-3 gathers every layer from all ranks.

        Raises:
            MetricFailed: a metric function of the user failed; raised on all ranks.
        """
        own = own_functions(self.metrics)
        tally, pairs = _Tally(self.spec.num_labels or 0), list[Pair]()
        engine.eval()
        try:
            rounds = list(shares(len(self.split), self.rows_at_once(engine), worker.world_size))
            for start, stop in rounds[worker.rank :: worker.world_size]:
                rows = self.split.read_rows(np.arange(start, stop))
                batch = collate(rows, self.spec.model.task, self.pad_token_id, worker.device, self.unpack)
                logits = model_logits(engine, batch, self.spec.model.task)
                tally.add(logits, batch)
                if own:
                    pairs.append(_pair_of(logits, batch))
        finally:
            engine.train()
        sums = tally.over_all_ranks(worker.device)
        metrics = metrics_of(self.metrics, sums)
        return with_own(metrics, _judged(pairs, own) if own else {}), confusion_of(sums)

    def rows_at_once(self, engine: torch.nn.Module) -> int:
        """Return the rows of a forward pass. It must be equal on all ranks, which gather the weights together."""
        wanted, trained = self.spec.eval.per_device_eval_batch_size, self.spec.train.per_device_train_batch_size
        if self.spec.model.task != "causal-lm":
            return wanted
        longest = int(self.split.index.num_tokens.max(initial=1))
        return rows_within(wanted, trained, longest * vocabulary_of(engine))


def vocabulary_of(engine: torch.nn.Module) -> int:
    config: Any = getattr(engine, "module", engine).config
    return int(config.get_text_config().vocab_size)


class _Tally:
    """Counts that are summed over batches and over ranks."""

    def __init__(self, num_labels: int) -> None:
        self._classes = ClassCounter(num_labels)
        self._sums = np.zeros(5 + self._classes.cells, dtype=np.float64)

    def add(self, logits: torch.Tensor, batch: Batch) -> None:
        targets = batch.targets
        best = logits.argmax(-1)
        real = targets != IGNORE_INDEX
        hit = (best == targets) & real
        per_row = real.reshape(len(targets), -1)
        exact = (hit.reshape(len(targets), -1) | ~per_row).all(-1) & per_row.any(-1)
        self._sums[0] += float(loss_sum(logits, targets))
        self._sums[1:5] += [int(real.sum()), int(hit.sum()), int(per_row.any(-1).sum()), int(exact.sum())]
        if self._classes.cells:
            cells = self._classes.cells_of(targets[real].cpu().numpy(), best[real].cpu().numpy())
            np.add.at(self._sums[5:], cells, 1)

    def over_all_ranks(self, device: torch.device) -> Sums:
        total = torch.from_numpy(self._sums).to(device)
        dist.all_reduce(total)
        values = total.cpu().numpy()
        loss, (targets, correct, rows, exact) = float(values[0]), (int(value) for value in values[1:5])
        return Sums(loss, targets, correct, rows, exact, self._classes.counts(values[5:].astype(np.int64)))


def _pair_of(logits: torch.Tensor, batch: Batch) -> Pair:
    """Return what the user's metric functions get of a batch: predictions and targets of its rows with a target."""
    targets = batch.targets
    predicted = logits.argmax(-1) if targets.dim() == 2 else logits.float()  # (rows, columns) of a language model
    real = (targets != IGNORE_INDEX).reshape(len(targets), -1).any(-1)
    return predicted[real].cpu().numpy(), targets[real].cpu().numpy()


def _judged(pairs: list[Pair], functions: dict[str, Callable[[EvalPrediction], Any]]) -> dict[str, float]:
    """Gather all predictions on rank 0, call the user's functions there once, and send the result to every rank.

    Raises:
        MetricFailed: a function failed; raised on all ranks.
    """
    values: dict[str, float] | str = {}
    if (gathered := on_rank_0(pairs)) is not None:
        given, found = _in_order(gathered), dict[str, float]()
        try:
            if given is None:
                raise DataError(f"eval.metrics: {', '.join(functions)}: no held-out row has a target")
            for name, function in functions.items():
                found |= apply_own(name, function, given)
            values = found
        except DataError as error:
            values = str(error)
    values = from_rank_0(values)
    if isinstance(values, str):
        raise MetricFailed(values)
    return values


def _in_order(gathered: list[Any]) -> EvalPrediction | None:
    """Order the gathered pairs by round, then by rank, which is the order of the rows in the split; None: no rows."""
    rounds = [pair for pairs in zip(*gathered, strict=True) for pair in pairs if len(pair[0])]
    if not rounds:
        return None
    return EvalPrediction(
        predictions=_stack([predicted for predicted, _ in rounds]), label_ids=_stack([label for _, label in rounds])
    )


def _stack(arrays: list[Any]) -> Any:
    """Concatenate along rows; shorter sequences are padded with IGNORE_INDEX."""
    if arrays[0].ndim == 2 and len({array.shape[1] for array in arrays}) > 1:
        width = max(array.shape[1] for array in arrays)
        arrays = [
            np.pad(array, ((0, 0), (0, width - array.shape[1])), constant_values=IGNORE_INDEX) for array in arrays
        ]
    return np.concatenate(arrays)
