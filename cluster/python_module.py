"""The command that starts one of our modules as a program. All parts of the packages start modules with it."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def module_command(module: str, *words: str, python: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the command that runs a module, for example `cluster.ray.gcs`.

    Without `-P`, Python would look for the module in the working directory first. A file `cluster.py` or `jobs.py` of
    somebody else would run instead.

    Args:
        words: arguments of the module.
        python: the Python to start, with its first arguments; empty: the one that runs this program.
    """
    return (*(python or (sys.executable,)), "-P", "-m", module, *words)
