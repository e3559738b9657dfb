"""The rules that choose a method, and what is said to change the choice."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jobs.advice.method_choice import Situation, choose

BETWEEN = Situation(examples=50_000, tasks=1, full_fits=True, lora_fits=True, gpu_gib=79.1, goal="accuracy")


@pytest.mark.parametrize(
    ("changes", "method", "why"),
    [
        ({}, "full", "the goal is accuracy"),
        ({"goal": "cost"}, "lora", "the goal is cost"),
        ({"examples": 9_999}, "lora", "9,999 examples are fewer than 10,000"),
        ({"examples": 100_000, "goal": "cost"}, "full", "the GPUs are large"),
        ({"examples": 100_000, "goal": "cost", "gpu_gib": 22.0}, "lora", "the goal is cost"),
        ({"examples": 100_000, "goal": "cost", "gpu_gib": None}, "lora", "the goal is cost"),
        ({"examples": 500_000, "tasks": 3}, "lora", "3 tasks can share one base model"),
        ({"examples": 500_000, "full_fits": False}, "lora", "full fine-tuning does not fit"),
        ({"full_fits": False, "lora_fits": False}, None, "neither method fits"),
    ],
)
def test_the_first_rule_that_holds_decides(changes: dict[str, object], method: str | None, why: str) -> None:
    choice = choose(replace(BETWEEN, **changes))  # type: ignore[arg-type]
    assert choice.method == method and why in choice.why


def test_what_would_change_the_choice_is_what_the_rules_answer_then() -> None:
    choice = choose(BETWEEN)
    assert choice.changes == (
        "with fewer than 10,000 examples: LoRA",
        "for 3 tasks or more: LoRA",
        "with --goal cost: LoRA",
        "on machines with too little memory for full fine-tuning: LoRA",
    )
    too_small = choose(replace(BETWEEN, full_fits=False))
    assert too_small.changes == ("on machines with enough memory for full fine-tuning: full fine-tuning",)
    assert choose(replace(BETWEEN, tasks=5, examples=500)).changes == ()
