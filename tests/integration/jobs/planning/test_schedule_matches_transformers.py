"""The rate of every step of a run is the one that transformers' own scheduler gives."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import TrainingArguments, get_scheduler

from jobs.planning import learning_rate_at, warmup_steps
from jobs.spec.finetune import SchedulerType, Train

RUNS = [
    (1, {}),
    (7, {"warmup_steps": 3}),
    (100, {"warmup_ratio": 0.1}),
    (101, {"warmup_steps": 0.05}),
    (50, {"warmup_steps": 50}),
]


def theirs(train: Train, warmup: int, total: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=train.learning_rate)
    stable_decay = train.lr_scheduler_type == "warmup_stable_decay"
    decay: dict[str, Any] = {"num_decay_steps": min(math.ceil(train.decay_ratio * total), total - warmup)}
    scheduler = get_scheduler(
        train.lr_scheduler_type, optimizer, warmup, total, scheduler_specific_kwargs=decay if stable_decay else None
    )
    rates = []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant_with_warmup", "warmup_stable_decay"])
@pytest.mark.parametrize(("total", "warmup"), RUNS)
def test_rate_of_every_step_is_that_of_transformers(kind: SchedulerType, total: int, warmup: dict[str, float]) -> None:
    train = Train(learning_rate=3e-4, lr_scheduler_type=kind, decay_ratio=0.3, **warmup)
    ours = [learning_rate_at(step, train, total) for step in range(total)]
    assert ours == pytest.approx(theirs(train, warmup_steps(train, total), total), rel=1e-12, abs=0)


@pytest.mark.parametrize("ratio", [0.0, 0.03, 0.1, 0.101, 0.3333])
def test_share_of_warmup_is_rounded_as_transformers_rounds_it(ratio: float, tmp_path: Any) -> None:
    arguments = TrainingArguments(output_dir=str(tmp_path), warmup_steps=ratio, use_cpu=True)
    for total in (1, 7, 30, 99, 1000):
        assert warmup_steps(Train(warmup_ratio=ratio), total) == arguments.get_warmup_steps(total)
