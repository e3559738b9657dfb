"""The output of a program, taken from the log that Ray keeps of its job.

The log has lines of Ray, too. Most come first, but Ray may write the last one after the program has begun. So the shell
writes a mark before it starts the program, and Ray's line is removed wherever it is.
"""

from __future__ import annotations

from collections.abc import Iterable

from cluster.backend import MAX_OUTPUT_BYTES

WRITE_MARK = r"printf '\036\n'"  # for a shell
_MARK = b"\x1e\n"


def program_output(log: Iterable[bytes], rays_line: bytes, after: int) -> bytes:
    """Return the program's bytes from `after` on, up to 1 MiB. Reads the log only as far as needed."""
    wanted, skip = bytearray(), after
    for chunk in _behind_mark(_without(log, rays_line)):
        wanted += chunk[skip:]
        skip = max(0, skip - len(chunk))
        if len(wanted) >= MAX_OUTPUT_BYTES:
            break
    return bytes(wanted[:MAX_OUTPUT_BYTES])


def _without(log: Iterable[bytes], line: bytes) -> Iterable[bytes]:
    """Yield the log without the first occurrence of a line."""
    held, found = b"", False
    for chunk in log:
        held += chunk
        if not found and (at := held.find(line)) >= 0:
            held, found = held[:at] + held[at + len(line) :], True
        keep = 0 if found else len(line) - 1  # the chunk may end within the line
        whole, held = held[: max(0, len(held) - keep)], held[max(0, len(held) - keep) :]
        yield whole
    yield held


def _behind_mark(log: Iterable[bytes]) -> Iterable[bytes]:
    head, found = b"", False
    for chunk in log:
        if found:
            yield chunk
            continue
        head += chunk
        at = head.find(_MARK)
        if at >= 0:
            found = True
            yield head[at + len(_MARK) :]
