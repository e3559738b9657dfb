"""How much memory this process uses and may use, and how often the kernel has killed one for memory. Linux only."""

from __future__ import annotations

import resource
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_V1_UNLIMITED_BYTES = 1 << 60  # control groups of version 1 write "no limit" as a number near 2**63


@dataclass(frozen=True)
class Memory:
    """The memory that this process may use.

    Attributes:
        limit_bytes: the lowest limit of this process's control groups, or the machine's memory; 0: it is not known.
        contained: whether a control group sets the limit, as in a container.
        kills: processes killed for memory so far: in this process's control group, and on the whole machine.
        used_bytes: memory in use now under this limit, without file caches that the kernel can drop.
    """

    limit_bytes: int
    contained: bool
    kills: tuple[int, ...]
    used_bytes: int = 0


def memory_here(root: Path = Path("/")) -> Memory:
    """Read limit, use and kills for this process. `root`: root of the file system; tests give another directory."""
    folders = list(groups(root, "memory"))
    machine = _number_after("MemTotal:", root / "proc/meminfo") * 1024
    limits = {folder: limit for folder in folders if (limit := _limit(folder)) and (not machine or limit < machine)}
    tightest = min(limits, key=lambda folder: limits[folder], default=None)
    own = next((folder for folder in folders if (folder / _events(folder)).exists()), None)
    kills = () if own is None else (_number_after("oom_kill", own / _events(own)),)
    available = _number_after("MemAvailable:", root / "proc/meminfo") * 1024
    return Memory(
        limit_bytes=machine if tightest is None else limits[tightest],
        contained=bool(limits),
        kills=(*kills, _number_after("oom_kill", root / "proc/vmstat")),
        used_bytes=max(0, machine - available if tightest is None else _used_by_group(tightest)),
    )


def killed_since(before: Sequence[int], after: Sequence[int]) -> bool:
    """Whether a counter of `Memory.kills` has grown."""
    return any(then < now for then, now in zip(before, after, strict=False))


def groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's control groups for memory or cpu, the innermost first.

    In a container, the path of the group may not exist: its own group is then mounted where the outermost one would be.
    """
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            base = root / "sys/fs/cgroup"
        elif controller in controllers.split(","):
            base = root / "sys/fs/cgroup" / controller
        else:
            continue
        inner = base / path.lstrip("/")
        yield from (folder for folder in (inner, *inner.parents) if folder.is_relative_to(base) and folder.is_dir())


def _events(folder: Path) -> str:
    """Return the name of the file that counts kills: of control groups version 2, else of version 1."""
    return "memory.events" if (folder / "memory.events").exists() else "memory.oom_control"


def _limit(folder: Path) -> int:
    """Return the limit of a group in bytes; 0: it sets none."""
    for name in ("memory.max", "memory.limit_in_bytes"):
        text = _text(folder / name).strip()
        if text.isdigit() and int(text) < _V1_UNLIMITED_BYTES:
            return int(text)
    return 0


def _used_by_group(folder: Path) -> int:
    for name in ("memory.current", "memory.usage_in_bytes"):
        text = _text(folder / name).strip()
        if text.isdigit():
            prefix = "" if name == "memory.current" else "total_"  # version 1 counts a group alone and with those below
            caches = (f"{prefix}{kind}" for kind in ("inactive_file", "active_file"))
            return int(text) - sum(_number_after(cache, folder / "memory.stat") for cache in caches)
    return 0


def _number_after(word: str, file: Path) -> int:
    lines = (line.split() for line in _text(file).splitlines())
    return next((int(fields[1]) for fields in lines if len(fields) > 1 and fields[0] == word), 0)


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""


def resident_bytes() -> int:
    """Return the memory that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
