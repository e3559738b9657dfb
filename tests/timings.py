"""Write the table of tests/README.md from a run's report: `python -m tests.timings build/tests.xml`.

The report is the JUnit XML that `make test-all` leaves. The table has every test marked `slow`, and every other one
that took as long as `LEAST_S`. What a test proves is its docstring's first paragraph, or its own name.
"""

from __future__ import annotations

import ast
import functools
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "tests" / "README.md"
BEGIN, END = "<!-- timings: begin -->\n", "<!-- timings: end -->\n"
LEAST_S = 10.0


@dataclass(frozen=True)
class Case:
    """One test function; its parameters, and what a fixture of its module takes, are added up."""

    file: str  # from the repository's root
    name: str
    seconds: float


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m tests.timings REPORT.xml", file=sys.stderr)
        return 2
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{table(read_report(Path(arguments[0])))}\n{END}{after}")
    return 0


def read_report(path: Path) -> list[Case]:
    """Raises OSError, or ElementTree.ParseError: it is no report."""
    seconds: dict[tuple[str, str], float] = {}
    for case in ElementTree.parse(path).iter("testcase"):
        key = _file_of(case.attrib["classname"]), case.attrib["name"].partition("[")[0]
        seconds[key] = seconds.get(key, 0.0) + float(case.attrib["time"])
    return [Case(file, name, took) for (file, name), took in seconds.items()]


def _file_of(classname: str) -> str:
    """The last parts may be classes in the file."""
    parts = classname.split(".")
    while len(parts) > 1 and not (ROOT / f"{'/'.join(parts)}.py").exists():
        parts.pop()
    return f"{'/'.join(parts)}.py"


def table(cases: list[Case]) -> str:
    """The longest first, with the time of all above it."""
    lines = ["| seconds | file | what it proves |", "|---:|---|---|"]
    for case in sorted(cases, key=lambda case: -case.seconds):
        known = functions(case.file).get(case.name)
        if known is not None and (known.slow or case.seconds >= LEAST_S):
            lines.append(f"| {case.seconds:.0f} | {case.file.removeprefix('tests/')} | {known.proves} |")
    total = sum(case.seconds for case in cases)
    return "\n".join(
        [*lines, "", f"All {len(cases):,} test functions of the report took {total / 60:.0f} minutes.", ""]
    )


@dataclass(frozen=True)
class Function:
    slow: bool
    proves: str


@functools.cache
def functions(file: str) -> dict[str, Function]:
    """The test functions of a file, by name."""
    path = ROOT / file
    if not path.exists():
        return {}
    tree = ast.parse(path.read_text())
    all_slow = any(
        isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark" and _is_slow(node.value)
        for node in tree.body
    )
    return {
        node.name: Function(all_slow or any(map(_is_slow, node.decorator_list)), proves(node))
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def _is_slow(node: ast.expr) -> bool:
    return "mark.slow" in ast.unparse(node)


def proves(node: ast.FunctionDef) -> str:
    """The name as a sentence, and what the docstring adds."""
    sentence = node.name.removeprefix("test_").replace("_", " ")
    added = " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split()).replace("|", "/")
    return f"{sentence}. {added}" if added else sentence


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
