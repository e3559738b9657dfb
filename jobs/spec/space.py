"""The search space of a sweep: for each field that varies, a range or a list of values."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Discriminator, Field, JsonValue, Tag, model_validator

from jobs.frozen import Frozen

MOST_CHOICES: Final = 1000


class Range(Frozen):
    """Numbers from `min` to `max`."""

    min: float = Field(description="The smallest value.")
    max: float = Field(description="The largest value.")
    log: bool = Field(False, description="Draw the logarithm uniformly, as for learning rates.")
    points: int | None = Field(None, ge=2, le=MOST_CHOICES, description="Values that a grid takes from this range.")

    @model_validator(mode="after")
    def _goes_up(self) -> Range:
        if self.min >= self.max:
            raise ValueError(f"min ({self.min:g}) must be less than max ({self.max:g})")
        if self.log and self.min <= 0:
            raise ValueError(f"min is {self.min:g}, but a logarithm needs numbers above 0: raise min, or drop log")
        return self

    @property
    def between(self) -> float:
        """A value inside the range that is not whole even if both ends are: integer fields reject it."""
        return self.min + (self.max - self.min) * 0.381966

    def values(self, count: int) -> tuple[float, ...]:
        """Return `count` evenly spaced values; their logarithms are evenly spaced if `log` is set."""
        if self.log:
            ratio = self.max / self.min
            found = [self.min * ratio ** (place / (count - 1)) for place in range(count)]
        else:
            found = [self.min + (self.max - self.min) * place / (count - 1) for place in range(count)]
        return (*found[:-1], self.max)  # exactly max: the formula may round to a value beside it


def _form_of(value: object) -> str:
    return "choices" if isinstance(value, list | tuple) else "range"


Choices = Annotated[tuple[JsonValue, ...], Field(min_length=1, max_length=MOST_CHOICES)]
Dimension = Annotated[Annotated[Range, Tag("range")] | Annotated[Choices, Tag("choices")], Discriminator(_form_of)]
Space = dict[str, Dimension]
