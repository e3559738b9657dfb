"""Decides whether a run trains packed rows as they are, and warns if packing or padding changes the results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from jobs.errors import DataError
from jobs.spec.finetune import Spec
from jobs.training.model.isolation import later_tokens_are_unseen, packed_samples_are_isolated, padding_is_ignored
from jobs.training.reporter import Reporter
from jobs.training.worker_context import WorkerContext


def rows_are_unpacked(spec: Spec, gang: WorkerContext, model: Any, pad_token_id: int, reporter: Reporter) -> bool:
    """Test on the model whether each sample of a packed row needs a separate row. Every rank must call it.

    Args:
        model: the DeepSpeed engine.

    Raises:
        DataError: a language model sees the tokens that it has to predict.
    """
    rows = max(spec.train.per_device_train_batch_size, spec.eval.per_device_eval_batch_size)
    kind, task = model.module.config.model_type, spec.model.task

    def holds(proof: Callable[..., bool], **more: Any) -> bool:
        """Whether the proof succeeds on every rank; the same result on all ranks."""
        failed = torch.tensor(float(not proof(model, pad_token_id, gang.device, rows, spec.data.seq_len, **more)))
        failed = failed.to(gang.device)
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
