"""The base of every value that is written to a file: specs, manifests, outcomes."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """An immutable value. It rejects unknown keys and assignments; its sequences are tuples."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def with_value(self, field: str, value: Any) -> Self:
        """Return a copy with another value of a field, such as `train.max_steps`. The value is not checked."""
        name, _, rest = field.partition(".")
        new = getattr(self, name).with_value(rest, value) if rest else value
        return self.model_copy(update={name: new})


class Shown(Frozen):
    """A value that is written for those who look at a run. It ignores keys that a newer release has added."""

    model_config = ConfigDict(extra="ignore")
