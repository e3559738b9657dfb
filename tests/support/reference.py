"""Plain PyTorch in one process: an independent statement of what a run must compute.

Every sample is run alone (no packing, no padding, no accumulation), losses are summed over the targets of the global
batch and divided once; the optimizer, the clipping and the schedule are torch's and transformers' own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from jobs.data.order.stream import step_plan
from jobs.data.prepared import Prepared
from jobs.planning import warmup_steps
from jobs.spec.finetune import Spec


@dataclass(frozen=True)
class Losses:
    loss: list[float]
    grad_norm: list[float]
    learning_rate: list[float]


def samples_of(row: dict[str, Any]) -> list[tuple[list[int], list[int]]]:
    """(input_ids, labels) of every sample in a prepared row."""
    if len(row["labels"]) != len(row["input_ids"]):
        return [(row["input_ids"], row["labels"])]
    found, start = [], 0
    for length in row["lengths"]:
        found.append((row["input_ids"][start : start + length], row["labels"][start : start + length]))
        start += length
    return found


def plain_losses(
    spec: Spec, prepared: Prepared, steps: int, changed: Callable[[Any], Any] = lambda model: model
) -> Losses:
    """Train for some steps. `changed` may put an adapter around the model; what it freezes is not trained."""
    import transformers

    classify = spec.model.task == "sequence-classification"
    auto = transformers.AutoModelForSequenceClassification if classify else transformers.AutoModelForCausalLM
    config = transformers.AutoConfig.from_pretrained(spec.model.path)
    if not classify:
        for name, value in (("is_decoder", True), ("causal", True), ("attn_type", "uni")):
            if hasattr(config, name):
                setattr(config, name, value)
    if classify:
        config.num_labels = spec.num_labels
    transformers.set_seed(spec.seed)  # for a new head
    model = auto.from_pretrained(spec.model.path, config=config, dtype=torch.float32).train()
    text = model.config.get_text_config()
    if getattr(text, "pad_token_id", None) is None:  # where the model's head looks for the end of a text
        text.pad_token_id = prepared.manifest.pad_token_id
    masked = classify and "attention_mask" in inspect.signature(model.forward).parameters
    model = changed(model)
    decay = [p for p in model.parameters() if p.ndim >= 2 and p.requires_grad]
    plain = [p for p in model.parameters() if p.ndim < 2 and p.requires_grad]
    groups = [{"params": decay, "weight_decay": spec.train.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=spec.train.learning_rate)
    split = prepared.split("train")
    plan = step_plan(spec, split)
    schedule = transformers.get_scheduler(
        spec.train.lr_scheduler_type, optimizer, warmup_steps(spec.train, plan.total_steps), plan.total_steps
    )
    options = {} if classify else {"use_cache": False}
    out = Losses([], [], [])
    for step in range(steps):
        rows = split.read_rows(plan.rows_of_step(step)).to_pylist()
        sums, count = torch.zeros(()), 0
        for ids, labels in (sample for row in rows for sample in samples_of(row)):
            inputs = {"input_ids": torch.tensor([ids])}
            if masked:  # else some types (T5Gemma) make one of their own, which leaves out tokens of the text
                inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
            logits = model(**inputs, **options).logits[0]
            if not classify:
                logits = logits[-len(ids) :]  # a trained prompt precedes them
            targets = torch.tensor(labels) if classify else torch.tensor(labels[1:])
            scored = logits[None] if classify else logits[:-1]
            sums = sums + torch.nn.functional.cross_entropy(scored, targets, ignore_index=-100, reduction="sum")
            count += int((targets != -100).sum())
        out.learning_rate.append(optimizer.param_groups[0]["lr"])
        (sums / count).backward()
        out.grad_norm.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), spec.train.max_grad_norm)))
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        out.loss.append(float(sums.detach()) / count)
    return out
