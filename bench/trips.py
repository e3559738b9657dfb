"""Follows a command through the code, and counts how often a reader who follows it opens each file.

    python -m bench.trips run examples/reviews.yaml

The reader reads a function when it is called for the first time in the main thread, and opens its file for that, unless
it is open. What is only imported does not count, nor what other processes compute.
"""

from __future__ import annotations

import atexit
import collections
import itertools
import pathlib
import sys
from types import CodeType, FrameType
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = tuple(f"{ROOT / name}/" for name in ("jobs", "orchestrator", "cluster"))


class Reader:
    def __init__(self) -> None:
        self._read = dict[CodeType, str]()  # in the order of reading

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or code in self._read or not code.co_filename.startswith(PACKAGES):
            return
        if code.co_name != "<module>" and not _imports(frame):
            self._read[code] = code.co_filename

    def openings(self) -> collections.Counter[str]:
        """How often each file is opened."""
        return collections.Counter(file for file, _ in itertools.groupby(self._read.values()))


def _imports(frame: FrameType) -> bool:
    """Whether the call is made while a module is imported, as calls of decorators and class bodies are."""
    outer: FrameType | None = frame
    while outer is not None:
        if outer.f_code.co_name == "<module>" and outer.f_code.co_filename.startswith(PACKAGES):
            return True
        outer = outer.f_back
    return False


def report(reader: Reader) -> None:
    sys.setprofile(None)
    found = reader.openings()
    often = {file: times for file, times in found.items() if times > 2}
    print(f"{len(found)} files, opened {found.total()} times; {len(often)} of them more than twice:", file=sys.stderr)
    for file, times in sorted(often.items(), key=lambda item: -item[1]):
        print(f"{times:4d}  {pathlib.Path(file).relative_to(ROOT)}", file=sys.stderr)


def main() -> None:
    from orchestrator.cli.entry import main as fleetune

    reader = Reader()
    atexit.register(report, reader)
    sys.argv = ["fleetune", *sys.argv[1:]]
    sys.setprofile(reader)
    fleetune()


if __name__ == "__main__":
    main()
