"""Records that cannot be used, and why: a sentence for people, and a kind that groups equal problems."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from jobs.storage import files as storage

NOT_UTF8: Final = "not UTF-8"
NOT_JSON: Final = "not JSON"


@dataclass(frozen=True)
class Reason:
    """Why a record cannot be used.

    Attributes:
        text: for people. Lines after the first hold a traceback.
        kind: the text without values of the record, and with N for numbers, so that equal problems can be counted;
            empty if the text has no values.
    """

    text: str
    kind: str = field(default="", compare=False)


class Rejected(Exception):
    """A record cannot be used. `reason` says why; for `fatal`, see `BadRecord`."""

    def __init__(self, text: str, kind: str = "", *, fatal: bool = False) -> None:
        super().__init__(text)
        self.reason, self.fatal = Reason(text, kind), fatal


@dataclass(frozen=True)
class BadRecord:
    """A record that cannot be used, and why; `reason` and `kind` are those of `Reason`."""

    file: str
    line: int
    reason: str
    kind: str = field(default="", compare=False, kw_only=True)
    fatal: bool = field(
        default=False, kw_only=True
    )  # the spec does not fit the data: no record may be set aside for it

    @classmethod
    def of(cls, file: str, line: int, reason: Reason, *, fatal: bool = False) -> BadRecord:
        return cls(file, line, reason.text, kind=reason.kind, fatal=fatal)

    @property
    def why(self) -> Reason:
        return Reason(self.reason, self.kind)

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


def write_bad_records(path: str, records: Iterable[BadRecord]) -> None:
    """Write one JSON object a line, with the file, line and reason of a record. Raises StorageError."""
    lines = (json.dumps({"file": one.file, "line": one.line, "reason": one.reason}) for one in records)
    storage.write_bytes(path, "".join(f"{line}\n" for line in lines).encode())
