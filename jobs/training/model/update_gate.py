"""Lets an update of the weights be left out after DeepSpeed has computed the gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class UpdateGate:
    """Stands before the optimizer's `step`, which DeepSpeed calls for each flat partition, and may leave an update out.

    At that place every ZeRO stage has computed the norm of the gradient over all ranks, and has changed nothing yet.
    DeepSpeed then copies the unchanged weights and frees the gradients as after any step. The loss scale of fp16 stays:
    to DeepSpeed this is no overflow.
    """

    def __init__(self, engine: Any) -> None:
        self._zero = engine.optimizer
        adam = self._zero.optimizer
        self._update, adam.step = adam.step, self
        self._veto: Callable[[float], bool] | None = None
        self._open: bool | None = None  # None: not decided yet

    def begin(self, veto: Callable[[float], bool] | None) -> None:
        self._veto, self._open = veto, None

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if self._open is None:
            self._open = self._veto is None or not self._veto(float(self._zero._global_grad_norm))
        return self._update(*arguments, **named) if self._open else None
