"""Importing large packages, and other work that makes many objects, in less time."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    """Keep garbage collections out of this block. Threads may be in such blocks at the same time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def quick_imports() -> Iterator[None]:
    """Import in this block without garbage collections, and leave all that lives at its end out of later ones.

    An import creates up to a million objects that stay. Python would look through all of them again and again: for
    torch, transformers and DeepSpeed that takes a tenth of the time. Use it before the process has a model, which
    would otherwise never be collected.
    """
    with without_collections():
        try:
            yield
        finally:
            gc.freeze()
