"""Importing large packages in less time."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def quick_imports() -> Iterator[None]:
    """Import in this block without garbage collections, and leave what it has imported out of later ones.

    An import creates up to a million objects that stay. Python would look through all of them again and again: for
    torch, transformers and DeepSpeed that takes a seventh of the time. Threads may be in such blocks at the same time.
    """
    enabled, known = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > known:  # otherwise there is only what others have left, as garbage perhaps
            gc.freeze()
        if enabled:
            gc.enable()
