"""Keeps stdout for the results of a bench, one JSON object a line. Libraries such as DeepSpeed print there too."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any


def other_output_to_stderr() -> contextlib.redirect_stdout[Any]:
    """Send to stderr what is printed meanwhile, except for the results of `tell`."""
    return contextlib.redirect_stdout(sys.stderr)


def tell(result: dict[str, Any]) -> None:
    """Print one result to stdout."""
    print(json.dumps(result), file=sys.__stdout__, flush=True)
