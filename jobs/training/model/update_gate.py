"""Can skip an update of the weights after DeepSpeed has computed the gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class UpdateGate:
    """Replaces the optimizer's `step`, which DeepSpeed calls for each flat partition, and may skip an update.

    At this call every ZeRO stage has computed the norm of the gradient over all ranks, and has not changed anything.
    After a skipped update DeepSpeed copies the unchanged weights and frees the gradients as after any step. The loss
    scale of fp16 stays, because DeepSpeed does not see a skipped update as an overflow.
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
