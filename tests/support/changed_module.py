"""Changes a module in the processes that a test starts, out of a `sitecustomize` on their PYTHONPATH."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType

LOOP = "jobs.training.loop.loop"


class _Finder:
    """Finds a module as others would, once, and changes it when it is loaded."""

    def __init__(self, name: str, change: Callable[[ModuleType], None]) -> None:
        self._name, self._change = name, change

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.loader is not None
        load = spec.loader.exec_module

        def load_changed(module: ModuleType) -> None:
            load(module)
            self._change(module)

        spec.loader.exec_module = load_changed  # type: ignore[method-assign]
        return spec


def when_loaded(name: str, change: Callable[[ModuleType], None]) -> None:
    """Call `change` with the module of that name as soon as this process has loaded it."""
    sys.meta_path.insert(0, _Finder(name, change))
