"""Supports classification heads that read the end-of-text token, which each row must contain exactly once."""

from __future__ import annotations

import inspect
from typing import Any

import torch


def reads_the_end(model: Any) -> bool:
    """Whether the model's forward looks for the end-of-text token, as in BART and T5."""
    return _forward_names(model, "eos_token_id")


def reads_padding(model: Any) -> bool:
    """Whether the model's forward looks for padding, as heads do that use the state of a row's last token."""
    return _forward_names(model, "pad_token_id")


def _forward_names(model: Any, attribute: str) -> bool:
    return attribute in inspect.unwrap(type(model).forward).__code__.co_names


def with_one_end(inputs: dict[str, torch.Tensor], end: int, pad_token_id: int) -> dict[str, torch.Tensor]:
    """Return the rows with exactly one end-of-text token each: the last one, which the tokenizer wrote.

    These models reject a batch whose rows differ in the number of such tokens. Rows would differ if a text quotes the
    token, if padding uses the token, or if the row is a placeholder. A row without the token gets it in its last place
    before the padding.

    Args:
        inputs: `input_ids` and `attention_mask`, (rows, tokens) each.
    """
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    other = next(token for token in (pad_token_id, 0, 1) if token != end)
    places = torch.arange(ids.shape[1], device=ids.device)
    # Some tokenizers write a language token after the end-of-text token (mBART, PLBart).
    found = torch.where((ids == end) & (mask == 1), places, -1).amax(1, keepdim=True)
    place = torch.where(found < 0, mask.sum(1, keepdim=True) - 1, found)
    return {**inputs, "input_ids": torch.where(places == place, end, torch.where(ids == end, other, ids))}
