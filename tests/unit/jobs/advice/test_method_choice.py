"""The rules that choose a method, and what is said to change the choice."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest

from jobs.advice.method_choice import NAMES, Method, Situation, choose
from jobs.spec.method import MethodName

ALL = frozenset[Method](("full", "lora", "prompt"))
BETWEEN = Situation(
    50_000, tokens=20_000_000, is_labelled=False, parameters=7 * 10**9, tasks=1, possible=ALL, fitting=ALL,
    gpu_gib=79.1, goal="accuracy",
)  # fmt: skip
PROMPT_FITS, LORA_FITS, LARGE = frozenset[Method](("prompt",)), ALL - {"full"}, 12 * 10**9


@pytest.mark.parametrize(
    ("changes", "method", "why"),
    [
        ({}, "full", "the goal is accuracy"),
        ({"goal": "cost"}, "lora", "the goal is cost"),
        ({"examples": 9_999, "tokens": 2_000_000}, "lora", "9,999 examples with 2M tokens in all are less than 10,000"),
        ({"examples": 500, "tokens": 8_000_000}, "full", "500 examples with 8M tokens in all allow both"),  # long ones
        ({"examples": 500, "tokens": 80_000_000, "goal": "cost"}, "full", "a low rank falls behind"),
        ({"examples": 500, "tokens": 80_000_000, "is_labelled": True}, "lora", "500 labelled examples are less"),
        ({"tokens": 80_000_000, "is_labelled": True, "goal": "cost"}, "lora", "the goal is cost"),
        (
            {"examples": 100_000, "is_labelled": True, "goal": "cost"},
            "full",
            "are at least 100,000 examples,",
        ),
        ({"examples": 100_000, "goal": "cost"}, "full", "the GPUs are large"),
        ({"examples": 100_000, "goal": "cost", "gpu_gib": 22.0}, "lora", "the goal is cost"),
        ({"examples": 100_000, "goal": "cost", "gpu_gib": None}, "lora", "the goal is cost"),
        ({"examples": 500_000, "tasks": 3}, "lora", "3 tasks can share one base model"),
        ({"tasks": 3, "goal": "cost"}, "lora", "each with a small adapter"),
        ({"tasks": 3, "goal": "cost", "parameters": LARGE}, "prompt", "10B parameters or more, each with a prompt"),
        ({"tasks": 3, "parameters": LARGE}, "lora", "each with a small adapter"),
        ({"examples": 500_000, "fitting": LORA_FITS}, "lora", "full fine-tuning does not fit"),
        ({"fitting": frozenset({"full", "prompt"}), "tasks": 3}, "full", "LoRA does not fit"),
        ({"fitting": PROMPT_FITS}, "prompt", "full fine-tuning does not fit these machines; LoRA does not fit"),
        ({"fitting": ALL - {"lora"}, "possible": ALL - {"lora"}}, "full", "LoRA cannot be used for this job"),
        ({"fitting": frozenset()}, None, "no method fits"),
    ],
)
def test_the_first_rule_that_holds_decides(changes: dict[str, object], method: str | None, why: str) -> None:
    choice = choose(replace(BETWEEN, **changes))  # type: ignore[arg-type]
    assert choice.method == method and why in choice.why


@pytest.mark.parametrize(
    ("now", "changes"),
    [
        (
            {},
            (
                "with fewer than 10,000 such examples: LoRA",
                "for 3 tasks or more: LoRA",
                "with --goal cost: LoRA",
                "on machines with too little memory for full fine-tuning: LoRA",
            ),
        ),
        (
            {"examples": 100, "tokens": 1_000_000},
            ("with 730 such examples or more: full fine-tuning",),
        ),
        (
            {"examples": 100, "tokens": 1_000_000, "goal": "cost"},
            ("with 7,300 such examples or more: full fine-tuning",),
        ),
        (
            {"examples": 200_000, "goal": "cost"},
            (
                "with fewer than 100,000 such examples: LoRA",
                "for 3 tasks or more: LoRA",
                "on GPUs of less than 40 GB: LoRA",
                "on machines with too little memory for full fine-tuning: LoRA",
            ),
        ),
        ({"fitting": LORA_FITS}, ("on machines with enough memory for full fine-tuning: full fine-tuning",)),
        ({"fitting": frozenset({"full"}), "possible": ALL - {"lora"}, "examples": 500, "tokens": 1000}, (
            "on machines with too little memory for full fine-tuning: none",
        )),
        ({"tasks": 5, "examples": 500, "tokens": 100_000}, ()),
        ({"examples": 100, "tokens": 1_000_000, "is_labelled": True}, (
            "with 10,000 such examples or more: full fine-tuning",
        )),
        ({"examples": 1, "tokens": 8_000_000, "goal": "cost"}, (
            "with 10 such examples or more: full fine-tuning", "with --goal accuracy: full fine-tuning",
        )),
    ],
)  # fmt: skip
def test_what_would_change_the_choice_is_what_the_rules_answer_then(
    now: dict[str, object], changes: tuple[str, ...]
) -> None:
    assert choose(replace(BETWEEN, **now)).changes == changes  # type: ignore[arg-type]


def test_every_method_of_a_spec_has_a_name_here() -> None:
    assert set(NAMES) == set(get_args(MethodName))
