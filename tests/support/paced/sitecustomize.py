"""On PYTHONPATH, rank 0 of a training waits a moment in each step, and the others wait for it.

A test that needs a training that goes on for minutes does not need it to keep every core busy meanwhile: what the test
is about, processes that start, then takes half as long.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_LOOP, _STEP_S = "jobs.training.loop.loop", 0.5


class _Pacer:
    """Finds the module of the training loop, once, as others would, and changes it when it is loaded."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != _LOOP:
            return None
        sys.meta_path.remove(self)  # type: ignore[arg-type]
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.loader is not None
        load = spec.loader.exec_module

        def load_paced(module: ModuleType) -> None:
            load(module)
            _pace(module)

        spec.loader.exec_module = load_paced  # type: ignore[method-assign]
        return spec


def _pace(loop: Any) -> None:
    import time

    step = loop.train_step

    def paced(run: Any, *rest: Any) -> Any:
        if run.gang.rank == 0:
            time.sleep(_STEP_S)
        return step(run, *rest)

    loop.train_step = paced


sys.meta_path.insert(0, _Pacer())  # type: ignore[arg-type]
