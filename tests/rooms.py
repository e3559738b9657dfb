"""Draw the rooms of the packages: `python -m tests.rooms` writes docs/rooms.svg and a table in docs/architecture.md.

A room is a folder of Python files with an `__init__.py`, whose first paragraph says what lives there. A line of the
picture leads from a room to one that it imports, inside a package, and is left out where a longer way leads there too.
Files that lie beside rooms are the ground of these rooms, or doors to them: each counts by itself in the search for
circles, and the picture shows no line from a room to a room inside it.
"""

from __future__ import annotations

import ast
import functools
import graphlib
import html
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
PICTURE, PAGE = ROOT / "docs" / "rooms.svg", ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- rooms: begin -->\n", "<!-- rooms: end -->\n"
PACKAGES = ("cluster", "jobs", "orchestrator")
# Two rooms that know each other: the checks name the kinds of specs, and reading a spec needs the checks.
ONE = {"jobs/spec/checking": "jobs/spec"}
_NO_ROOM = "orchestrator/store/database/migrations"
_WIDTH, _HEIGHT, _GAP, _RISE, _MARGIN = 152, 26, 14, 62, 24

Arrows = Mapping[str, frozenset[str]]


@functools.cache
def files() -> list[str]:
    """Paths of all Python files of the packages, without migrations."""
    found = (path.relative_to(ROOT).as_posix() for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
    return sorted(path for path in found if not path.startswith(_NO_ROOM))


@functools.cache
def rooms() -> dict[str, str]:
    """What lives in each room, by its path: the first paragraph of its docstring."""
    inits = [path for path in files() if path.endswith("/__init__.py")]
    found = [path.rpartition("/")[0] for path in inits]
    return {room: " ".join(_docstring(room).partition("\n\n")[0].split()) for room in found}


def _docstring(room: str) -> str:
    return ast.get_docstring(ast.parse((ROOT / room / "__init__.py").read_text())) or ""


@functools.cache
def imports() -> dict[str, frozenset[str]]:
    """For each file, the files of the packages that it imports, wherever in it the import stands."""
    by_module = {module_of(path): path for path in files()}

    def of(path: str) -> frozenset[str]:
        found: set[str] = set()
        for node in ast.walk(ast.parse((ROOT / path).read_text())):
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                whole = {f"{node.module}.{alias.name}" for alias in node.names}
                found.update(whole & by_module.keys())
                found.update({node.module} if whole - by_module.keys() else ())
        return frozenset(by_module[name] for name in found if name in by_module) - {path}

    return {path: of(path) for path in files()}


def module_of(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def arrows() -> Arrows:
    """For each room, the rooms that it imports. Files directly in a package, and doors to inner rooms, are left out."""
    found: dict[str, set[str]] = {room: set() for room in rooms() if room not in PACKAGES}
    for path, imported in imports().items():
        for other in imported:
            here, there = room_of(path), room_of(other)
            if here != there and here in found and there in found and not there.startswith(f"{here}/"):
                found[here].add(there)
    return {room: frozenset(others) for room, others in found.items()}


def room_of(path: str) -> str:
    room = path.rpartition("/")[0]
    return ONE.get(room, room)


def may_import() -> dict[str, frozenset[str]]:
    """For each room, the files that it may import, by the sentence `May import ...` of its docstring.

    These are the rooms and files that the sentence names, what these may import, the files beside and above the room,
    and those directly in `cluster`. `all of` or `else in` before a room that the reader is in means all its rooms.
    """
    found = {}
    for room in rooms():
        folders, allowed, seen, left = {"cluster", room}, set[str](), set[str](), [room]
        while left:
            here = left.pop()
            if here in seen:
                continue
            seen.add(here)
            folders.update(_above(here)[:-1])
            for named, whole in _named_by(here):
                allowed.update(path for path in files() if path.startswith(f"{named}/") or path == f"{named}.py")
                if whole:
                    left.extend(other for other in rooms() if other.startswith(f"{named}/"))
                left.append(named if named in rooms() else named.rpartition("/")[0])
        allowed.update(path for path in files() if path.rpartition("/")[0] in folders)
        found[room] = frozenset(allowed)
    return found


def _above(room: str) -> list[str]:
    """The room and the folders that it lies in."""
    parts = room.split("/")
    return ["/".join(parts[:number]) for number in range(1, len(parts) + 1)]


def _named_by(room: str) -> list[tuple[str, bool]]:
    """The rooms and files (without `.py`) that a room's sentence names, and whether all of a room is meant.

    A name is looked for in the room, then in each folder above it. Files beside and above the room need no name.
    """
    sentence = " ".join(_docstring(room).split()).partition("May import ")[2].partition(". ")[0]
    found = []
    for before, name in re.findall(r"([^`]*)`([^`]+)`", sentence):
        path = name.removesuffix(".py").replace(".", "/")
        places = [f"{folder}/{path}" for folder in reversed(_above(room))] + [path]
        named = next((one for one in places if one in rooms() or f"{one}.py" in files()), None)
        assert named is not None, f"{room} may import `{name}`, which is nowhere"
        whole = before.endswith(("all of ", "else in "))
        if whole or named not in _above(room):
            found.append((named, whole))
    return found


def circle() -> list[str]:
    """Rooms that import each other in a circle; empty: there is none."""
    outer = {room.rpartition("/")[0] for room in rooms() if room not in ONE}

    def node(path: str) -> str:
        room = room_of(path)
        return path if room in outer and room == path.rpartition("/")[0] else room

    found: dict[str, set[str]] = {}
    for path, imported in imports().items():
        if not path.endswith("/__init__.py"):
            others = (other for other in imported if not other.endswith("/__init__.py"))
            found.setdefault(node(path), set()).update(node(other) for other in others if node(other) != node(path))
    return circle_in(found)


def circle_in(found: Mapping[str, Iterable[str]]) -> list[str]:
    """The first circle of a graph, from what imports to what is imported; empty: there is none."""
    try:
        graphlib.TopologicalSorter(found).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def table() -> str:
    lines = [f"| `{room}/` | {text} |" for room, text in sorted(rooms().items())]
    return "\n".join(["| room | what lives there |", "|---|---|", *lines, ""])


def picture() -> str:
    """The SVG: a band for each package, the rooms of a band by how much they stand on."""
    every = {room: others for room, others in arrows().items() if room not in ONE}
    parts, top, right = list[str](), _MARGIN, 0
    for package in reversed(PACKAGES):
        own = {room: frozenset(o for o in others if o in every) for room, others in every.items()}
        own = {room: frozenset(o for o in others if _package(o) == package) for room, others in own.items()
               if _package(room) == package}  # fmt: skip
        band, height, width = _band(package, own, top)
        parts += band
        top, right = top + height, max(right, width)
    style = (
        "text{font:12px sans-serif;fill:#222}.p{font-weight:bold;font-size:14px}"
        "rect{fill:#f4f6fa;stroke:#7a8aa0}line{stroke:#b4bfcc}"
    )
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {right + _MARGIN} {top}">\n'
        f"<style>{style}</style>\n{body}\n</svg>\n"
    )


def _band(package: str, arrows_: Arrows, top: int) -> tuple[list[str], int, int]:
    """Lines, boxes and texts of one package; its height, and its right end."""
    levels: dict[str, int] = {}
    for room in graphlib.TopologicalSorter(arrows_).static_order():
        levels[room] = max((levels[other] + 1 for other in arrows_[room]), default=0)
    highest = max(levels.values())
    places: dict[str, tuple[int, int]] = {}
    for level in range(highest + 1):
        row = sorted(room for room, at in levels.items() if at == level)
        for place, room in enumerate(row):
            places[room] = (_MARGIN + place * (_WIDTH + _GAP), top + 28 + (highest - level) * _RISE)
    lines = [
        f'<line x1="{places[room][0] + _WIDTH // 2}" y1="{places[room][1] + _HEIGHT}" '
        f'x2="{places[other][0] + _WIDTH // 2}" y2="{places[other][1]}"/>'
        for room in sorted(arrows_)
        for other in sorted(_nearest(room, arrows_))
    ]
    boxes = [
        f'<rect x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="4"/>'
        f'<text x="{x + 8}" y="{y + 17}">{html.escape(room.partition("/")[2])}</text>'
        for room, (x, y) in sorted(places.items())
    ]
    title = f'<text class="p" x="{_MARGIN}" y="{top + 12}">{package}/</text>'
    right = max(x for x, _ in places.values()) + _WIDTH
    return [title, *lines, *boxes], 28 + (highest + 1) * _RISE, right


def _nearest(room: str, arrows_: Arrows) -> set[str]:
    """The rooms that it imports and that none of the others leads to."""
    reached = {far for near in arrows_[room] for far in _all_below(near, arrows_)}
    return set(arrows_[room]) - reached


def _all_below(room: str, arrows_: Arrows) -> set[str]:
    return {room_ for near in arrows_[room] for room_ in {near, *_all_below(near, arrows_)}}


def _package(room: str) -> str:
    return room.partition("/")[0]


def main() -> int:
    if problem := circle():
        print(f"these rooms import each other in a circle: {' -> '.join(problem)}", file=sys.stderr)
        return 1
    PICTURE.write_text(picture())
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
