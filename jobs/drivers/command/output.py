"""Merges the output of a gang into one log of whole lines, with the process's rank and without secrets."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable
from typing import Final

LONGEST_LINE: Final = 8192  # bytes; longer lines are cut into several
SHORTEST_SECRET: Final = 4  # shorter secrets occur in ordinary words and are not masked
_HIDDEN = b"***"
_LINE_END = re.compile(rb"[\r\n]+")


def masker(secrets: Iterable[str]) -> tuple[Callable[[bytes], bytes], int]:
    """Return a function that replaces secrets by ***, and the length in bytes of the longest secret."""
    parts = {part for secret in secrets for part in (secret, *secret.splitlines())}
    words = sorted((part.encode() for part in parts if len(part) >= SHORTEST_SECRET), key=len, reverse=True)
    if not words:
        return (lambda text: text), 0
    pattern = re.compile(b"|".join(map(re.escape, words)))
    return (lambda text: pattern.sub(_HIDDEN, text)), len(words[0])


class Log:
    """Accepts the output of several processes from several threads, and writes whole lines."""

    def __init__(self, write: Callable[[bytes], object], secrets: Iterable[str]) -> None:
        self._write, self._lock = write, threading.Lock()
        self._mask, self._longest_secret = masker(secrets)

    def of(self, rank: int, world_size: int) -> LineWriter:
        prefix = f"[{rank}] ".encode() if world_size > 1 else b""
        return LineWriter(self._lines, prefix, self._mask, self._longest_secret)

    def _lines(self, lines: bytes) -> None:
        with self._lock:
            self._write(lines)


class LineWriter:
    """Splits the output of one process into lines. Long lines are cut; a carriage return also ends a line."""

    def __init__(
        self, write: Callable[[bytes], object], prefix: bytes, mask: Callable[[bytes], bytes], longest_secret: int
    ) -> None:
        self._write, self._prefix, self._mask = write, prefix, mask
        self._kept = max(longest_secret - 1, 0)  # bytes held back, because they may be the start of a secret
        self._rest = b""

    def __call__(self, output: bytes) -> None:
        *whole, self._rest = _LINE_END.split(self._rest + output)
        lines = [self._mask(line) for line in whole if line]
        if len(self._rest) >= LONGEST_LINE + self._kept:
            masked = self._mask(self._rest)
            cut = len(masked) - self._kept
            lines.append(masked[:cut])
            self._rest = masked[cut:]
        self._put(lines)

    def end(self) -> None:
        """Write what is left after the process has ended, even without a final line end."""
        self._put([self._mask(self._rest)] if self._rest else [])
        self._rest = b""

    def _put(self, lines: list[bytes]) -> None:
        pieces = (line[at : at + LONGEST_LINE] for line in lines for at in range(0, len(line), LONGEST_LINE))
        text = b"".join(self._prefix + piece + b"\n" for piece in pieces)
        if text:
            self._write(text)
