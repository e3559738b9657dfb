"""Test files near a change: `python -m tests.changed [--since REF]` prints them, `make test-changed` runs them.

Near is a test file that names a changed file, or a file that names it (`HOPS`). A name is an import, or, since tests
start programs, a string that is a module or a Python file of the repository. Nearly everything can be reached from
everything else in more hops, so this is what to run while one works; `make test` is what to run before one sends it.
What has changed is what differs from the commit, committed or not.
"""

from __future__ import annotations

import argparse
import ast
import functools
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("orchestrator", "jobs", "cluster", "tests", "bench", "examples")
HOPS = 2
COMMAND = "orchestrator.cli.entry"  # what `fleetune` runs
ALWAYS = ("tests/unit/test_structure.py",)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.changed", description=__doc__)
    parser.add_argument("--since", default="origin/main", metavar="REF", help="the commit to compare with")
    options = parser.parse_args(arguments)
    found = subprocess.run(
        ["git", "diff", "--name-only", "--merge-base", options.since], cwd=ROOT, capture_output=True, text=True
    )
    if found.returncode != 0:
        print(f"git does not know {options.since}: give --since REF", file=sys.stderr)
        return 2
    new = subprocess.run(
        ["git", "ls-files", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    print("\n".join(touched([*found.stdout.split("\n"), *new.stdout.split("\n")])))
    return 0


def touched(changed: Iterable[str], root: Path = ROOT) -> list[str]:
    """Test files that a change of these files can touch, from the root of the repository."""
    names = {name for name in changed if name}
    tests = sorted(path.relative_to(root).as_posix() for path in (root / "tests").rglob("test_*.py"))
    if names & {"pyproject.toml", "constraints.txt", "tests/conftest.py"}:
        return tests
    return [test for test in tests if test in ALWAYS or names & near(test, root) or _reads(test, names, root)]


@functools.cache
def near(test: str, root: Path) -> frozenset[str]:
    """The files that a test file reaches in so many hops, itself among them."""
    found = {test, *_conftests(test, root)}
    for _ in range(HOPS):
        found |= {name for file in found for name in imports(file, root)}
    return frozenset(found)


def _conftests(test: str, root: Path) -> list[str]:
    places = [(parent / "conftest.py").as_posix() for parent in Path(test).parents]
    return [place for place in places if (root / place).exists()]


@functools.cache
def imports(file: str, root: Path) -> frozenset[str]:
    """The files of the repository that a file names, by import or as a string."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((root / file).read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found |= _files(alias.name, root)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= _files(node.module, root)
            for alias in node.names:
                found |= _files(f"{node.module}.{alias.name}", root)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= _named(node.value, root)
    return frozenset(found)


def _named(text: str, root: Path) -> set[str]:
    if text.endswith(".py") and len(text) < 200 and (root / text).is_file():
        return {text}
    if text == "fleetune":
        return _files(COMMAND, root)
    return _files(text, root) if text.partition(".")[0] in PACKAGES and text.isascii() and " " not in text else set()


def _files(module: str, root: Path) -> set[str]:
    """The file of a module, and those of the packages around it."""
    parts = module.split(".")
    if parts[0] not in PACKAGES or len(module) > 200:
        return set()
    found = set()
    for end in range(1, len(parts) + 1):
        base = root.joinpath(*parts[:end])
        for path in (base.with_suffix(".py"), base / "__init__.py", base / "__main__.py"):
            if path.is_file():
                found.add(path.relative_to(root).as_posix())
    return found


def _reads(test: str, names: set[str], root: Path) -> bool:
    """Whether a test names one of these files that are no Python, as tests of a page do."""
    text = (root / test).read_text()
    return any(f'"{Path(name).name}"' in text for name in names if not name.endswith(".py"))


if __name__ == "__main__":
    sys.exit(main())
