"""The rules that choose a method, and what is said to change the choice."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest

from jobs.advice.method_choice import NAMES, Method, Situation, choose
from jobs.spec.method import MethodName

ALL = frozenset[Method](("full", "lora", "prompt"))
BETWEEN = Situation(
    50_000, tokens=20_000_000, is_labelled=True, parameters=7 * 10**9, tasks=1, possible=ALL, fitting=ALL,
    gpu_gib=79.1, goal="accuracy",
)  # fmt: skip
PROMPT_FITS, LORA_FITS, LARGE = frozenset[Method](("prompt",)), ALL - {"full"}, 12 * 10**9
HOLDING = "on GPUs of 40 GB or more that full fine-tuning fits without offload"
TEXT = {"is_labelled": False}


@pytest.mark.parametrize(
    ("changes", "method", "why"),
    [
        ({}, "full", "the goal decides: accuracy; full fine-tuning takes 1.5"),
        ({"goal": "cost"}, "lora", "the goal decides: cost"),
        ({"examples": 9_999}, "lora", "9,999 labelled examples are less than 10,000 examples, where"),
        ({"examples": 500, "tokens": 80_000_000}, "lora", "500 labelled examples are less"),  # long ones
        ({"tokens": 80_000_000, "goal": "cost"}, "lora", "the goal decides: cost"),
        ({"examples": 100_000, "goal": "cost"}, "full", "are at least 100,000 examples, so a low rank falls"),
        (
            {"examples": 100_000, "goal": "cost"},
            "full",
            "the GPUs are large (79.1 GiB), and full fine-tuning takes 1.5",
        ),
        # Text without labels: the tokens count.
        (
            {**TEXT, "examples": 9_000, "tokens": 8_000_000},
            "full",
            "9,000 texts with 8M tokens in all lie between 7.3M tokens and 73M tokens",
        ),
        ({**TEXT, "tokens": 7_000_000}, "lora", "50,000 texts with 7M tokens in all are less than 7.3M tokens"),
        ({**TEXT, "examples": 500, "tokens": 80_000_000, "goal": "cost"}, "full", "a low rank falls behind"),
        ({**TEXT, "examples": 500_000, "tokens": 20_000_000, "goal": "cost"}, "lora", "the goal decides: cost"),
        # The machines: full fine-tuning fits, but they are too small for it.
        ({"examples": 200_000, "gpu_gib": 22.0}, "lora", "GPUs with 22.0 GiB are not large (40 GB or more): full"),
        ({"examples": 200_000, "gpu_gib": None}, "lora", "the workers have no GPU: full fine-tuning takes 1.5 times"),
        ({"examples": 200_000, "offloads": True}, "lora", "it fits only with a part of its state on the host: full"),
        (
            {"examples": 200_000, "times_lora": 4.2},
            "lora",
            "it is far slower: full fine-tuning takes 4.2 times as long",
        ),
        ({"examples": 500_000, "tasks": 3}, "lora", "3 tasks can share one base model"),
        ({"tasks": 3, "goal": "cost"}, "lora", "each with a small adapter"),
        ({"tasks": 3, "goal": "cost", "parameters": LARGE}, "prompt", "10B parameters or more, each with a prompt"),
        ({"tasks": 3, "parameters": LARGE}, "lora", "each with a small adapter"),
        (
            {"examples": 500_000, "fitting": LORA_FITS, "lacking": "12.3 GiB"},
            "lora",
            "full fine-tuning does not fit these machines (12.3 GiB too much)",
        ),
        ({"fitting": frozenset({"full", "prompt"}), "tasks": 3}, "full", "LoRA does not fit"),
        ({"fitting": PROMPT_FITS}, "prompt", "full fine-tuning does not fit these machines; LoRA does not fit"),
        ({"fitting": ALL - {"lora"}, "possible": ALL - {"lora"}}, "full", "LoRA cannot be used for this job"),
        ({"fitting": frozenset()}, None, "no method fits"),
    ],
)
def test_the_first_rule_that_holds_decides(changes: dict[str, object], method: str | None, why: str) -> None:
    choice = choose(replace(BETWEEN, **changes))  # type: ignore[arg-type]
    assert choice.method == method and why in choice.why


def test_the_measure_of_the_data_is_told_with_its_limits() -> None:
    labelled, text = BETWEEN.measure, replace(BETWEEN, is_labelled=False).measure
    assert labelled == ("labelled data counts by its examples; limits: 10,000 examples and 100,000 examples")
    assert text == (
        "text without labels counts by its tokens, because a model learns each of them; "
        "limits: 7.3M tokens and 73M tokens"
    )


@pytest.mark.parametrize(
    ("now", "changes"),
    [
        (
            {},
            (
                "with fewer than 10,000 examples: LoRA",
                "for 3 tasks or more: LoRA",
                "with --goal cost: LoRA",
                "on GPUs of less than 40 GB: LoRA",
                "on machines with too little memory for full fine-tuning: LoRA",
            ),
        ),
        ({**TEXT, "tokens": 1_000_000}, ("with 7.3M tokens or more: full fine-tuning",)),
        ({**TEXT, "tokens": 1_000_000, "goal": "cost"}, ("with 73M tokens or more: full fine-tuning",)),
        (
            {"examples": 200_000, "goal": "cost"},
            (
                "with fewer than 100,000 examples: LoRA",
                "for 3 tasks or more: LoRA",
                "on GPUs of less than 40 GB: LoRA",
                "on machines with too little memory for full fine-tuning: LoRA",
            ),
        ),
        ({"fitting": LORA_FITS}, (f"{HOLDING}: full fine-tuning",)),
        ({"gpu_gib": None}, (f"{HOLDING}: full fine-tuning",)),
        ({"gpu_gib": 22.0, "examples": 200_000, "goal": "cost"}, (f"{HOLDING}: full fine-tuning",)),
        ({"offloads": True}, (f"{HOLDING}: full fine-tuning",)),
        ({"fitting": frozenset({"full"}), "possible": ALL - {"lora"}, "examples": 500}, (
            "on machines with too little memory for full fine-tuning: none",
        )),
        ({"tasks": 5, "examples": 500}, ()),
        ({"examples": 100, "tokens": 80_000_000}, ("with 10,000 examples or more: full fine-tuning",)),
        ({**TEXT, "tokens": 8_000_000, "goal": "cost"}, (
            "with 73M tokens or more: full fine-tuning", "with --goal accuracy: full fine-tuning",
        )),
    ],
)  # fmt: skip
def test_what_would_change_the_choice_is_what_the_rules_answer_then(
    now: dict[str, object], changes: tuple[str, ...]
) -> None:
    assert choose(replace(BETWEEN, **now)).changes == changes  # type: ignore[arg-type]


def test_every_method_of_a_spec_has_a_name_here() -> None:
    assert set(NAMES) == set(get_args(MethodName))
