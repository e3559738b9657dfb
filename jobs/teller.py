"""Prints a driver's lines for people."""

from __future__ import annotations

import datetime

from jobs.console import user_stream


class Teller:
    """Prints lines with a time stamp to the present stdout, even if stdout is redirected later."""

    def __init__(self) -> None:
        self.stream = user_stream()

    def __call__(self, text: str) -> None:
        print(f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M:%SZ} {text}", file=self.stream, flush=True)
