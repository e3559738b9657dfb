"""Removal of secrets from texts that people see: logs, events, messages, and the server's output."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from itertools import takewhile
from typing import Any
from urllib.parse import quote

HIDDEN = "***"
_SHORTEST = 4  # characters; hiding shorter secrets would hide too much other text
_LEAD_BYTES, _MOST_LEAD_BYTES = 512, 64 << 10
_OWN_TOKEN = re.compile(r"\bft_[A-Za-z0-9_-]{20,}")
# Bounded lengths, so that matching is fast for every text.
_PASSWORD = re.compile(r"(\b[A-Za-z][A-Za-z0-9+.-]{0,20}://[^\s/:@'\"]{0,100}):[^\s@]{1,200}@")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and newline; C1 codes can start escape sequences
_BEARER = re.compile(r"(\bBearer\s+)[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE)
_LOOKS_SECRET = re.compile(
    r"secret|token|passw|passphrase|credential|private|(?:^|_)(?:key|pwd|auth|dsn)(?:$|_)|api_?key|access_?key", re.I
)


class Scrubber:
    """Replaces known secrets in texts. Thread-safe."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known = {form for secret in secrets if len(secret) >= _SHORTEST for form in _forms(secret)}
        self._known = tuple(sorted(known, key=len, reverse=True))  # longest first, since one may contain another

    def text(self, text: str) -> str:
        for secret in self._known:
            if secret in text:
                text = text.replace(secret, HIDDEN)
        if "ft_" in text:
            text = _OWN_TOKEN.sub(HIDDEN, text)
        if "://" in text and "@" in text:
            text = _PASSWORD.sub(rf"\1:{HIDDEN}@", text)
        return _BEARER.sub(rf"\1{HIDDEN}", text) if "earer" in text.casefold() else text

    @property
    def lead_bytes(self) -> int:
        """Bytes before a piece of a text that are read with it, to find a secret that begins in them."""
        return min(max((len(secret.encode()) for secret in self._known), default=0) + _LEAD_BYTES, _MOST_LEAD_BYTES)

    def piece(self, lead: str, piece: str) -> str:
        """Scrub a piece of a text. A secret may begin in `lead`, the text before the piece."""
        begun, whole = self.text(lead), self.text(lead + piece)
        alike = takewhile(lambda pair: pair[0] == pair[1], zip(begun, whole, strict=False))
        return whole[sum(1 for _ in alike) :]

    def begun(self, text: str) -> int:
        """Count the bytes at the end of a text that may begin a secret.

        If a whole secret contains the first of them, all of that secret counts.
        """
        longest = ""
        for secret in self._known:
            lengths = range(min(len(secret) - 1, len(text)), max(len(longest), _SHORTEST - 1), -1)
            longest = next((secret[:length] for length in lengths if text.endswith(secret[:length])), longest)
        start, moved = len(text) - len(longest), bool(longest)
        while moved:  # a cut inside a whole secret would show the parts
            moved = False
            for secret in self._known:
                at = text.rfind(secret, 0, start + len(secret) - 1)
                if at >= 0 and at + len(secret) > start:
                    start, moved = at, True
        return len(text[start:].encode())

    def line(self, text: str) -> str:
        """Scrub a text for a terminal: control characters are written as `\\x1b`."""
        return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", self.text(text))

    def value(self, value: Any) -> Any:
        """Scrub all texts in a JSON value."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.text(str(key)): self.value(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(inner) for inner in value]
        return value

    def and_also(self, secrets: Iterable[str]) -> Scrubber:
        """Return a scrubber that hides these secrets, too."""
        more = Scrubber()
        more._known = tuple(sorted({*self._known, *secrets}, key=len, reverse=True))
        return more


def without_secrets(spec: Any, inside: bool = False) -> Any:
    """Return a spec in which values of secret-looking variables are hidden, in every section `env`."""
    if isinstance(spec, list | tuple):
        return [without_secrets(one) for one in spec]
    if not isinstance(spec, dict):
        return spec
    return {
        name: HIDDEN
        if inside and isinstance(value, str) and value and _LOOKS_SECRET.search(name)
        else without_secrets(value, inside=name in ("env", "environment", "env_vars"))
        for name, value in spec.items()
    }


def _forms(secret: str) -> set[str]:
    """Return the forms of a secret: as is, in JSON, in Python's quotes, in a URL; and each long line of it."""
    written = {json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1], repr(secret)[1:-1]}
    lines = {line for line in map(str.strip, secret.splitlines()) if len(line) > _SHORTEST * 2}
    return {secret, secret.strip(), *written, quote(secret, safe=""), *lines}
