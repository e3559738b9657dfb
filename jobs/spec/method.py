"""The fields `method`, `lora` and `prompt` of a spec: which parameters are trained."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, Field

from jobs.frozen import Frozen

ALL_LINEAR: Final = "all-linear"
_MOST_RANK: Final = 65_536  # more than the width of any model
_MOST_VIRTUAL_TOKENS: Final = 65_536


MethodName = Literal["full", "lora", "prompt"]


class ChosenMethod(Frozen):
    """What is trained."""

    kind: MethodName = Field(
        "full",
        description="full: every parameter; lora: low-rank adapters of a frozen model; prompt: tokens before each row.",
    )


def _from_name(value: object) -> object:
    return {"kind": value} if isinstance(value, str) else value


Method = Annotated[ChosenMethod, BeforeValidator(_from_name, json_schema_input_type=MethodName | ChosenMethod)]


def _names(value: object) -> object:
    if isinstance(value, list):
        return tuple(value)  # strict validation takes a list from JSON only, not from a validator
    return (value,) if isinstance(value, str) else value


class Lora(Frozen):
    """LoRA, for `method: lora`. A new classification head is trained fully."""

    rank: int = Field(16, ge=1, le=_MOST_RANK, description="Rank of the update of each module.")
    alpha: float = Field(32.0, gt=0.0, le=1e6, description="The update is multiplied by alpha / rank.")
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="Dropout of the input of each adapter.")
    target_modules: Annotated[
        tuple[str, ...], BeforeValidator(_names, json_schema_input_type=str | tuple[str, ...])
    ] = Field(
        (ALL_LINEAR,),
        min_length=1,
        description="Linear modules that get an adapter: ends of their names, or all-linear (all but the head).",
    )


class Prompt(Frozen):
    """Prompt tuning, for `method: prompt`. A new classification head is trained fully."""

    num_virtual_tokens: int = Field(
        20, ge=1, le=_MOST_VIRTUAL_TOKENS, description="Trained embeddings before each row."
    )
    init_text: str | None = Field(
        None, min_length=1, description="Text whose embeddings they start from; default: random tokens."
    )
