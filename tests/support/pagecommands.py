"""The commands of a page, taken from the page itself, so that a test runs what the page says."""

from __future__ import annotations

import pathlib
import re
from dataclasses import dataclass

_BLOCK = re.compile(r"^(?:<!-- (?P<mark>.+?) -->\n)?```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block. `mark`: the comment right before it, as `on head`; None where it has none."""

    mark: str | None
    kind: str
    text: str

    @property
    def where(self) -> tuple[str, ...]:
        """`on worker-1, worker-2` and `on head, goes on` name hosts."""
        words = (self.mark or "").removeprefix("on ").split(", ")
        return tuple(word for word in words if self.mark and self.mark.startswith("on ") and " " not in word)


def blocks_of(page: pathlib.Path) -> list[Block]:
    return [Block(match["mark"], match["kind"], match["text"]) for match in _BLOCK.finditer(page.read_text())]
