"""Runs the table of planted failures, and says which are right."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from bench.failures.cases import CASES
from bench.failures.given import Workshop
from bench.failures.judging import Kind, problems
from bench.failures.running import run_case

WANTED = 0.95  # share of the cases that are right


def main() -> int:
    options = arguments()
    cases = [case for case in CASES if not options.quick or case.quick]
    cases = [case for case in cases if not options.kind or case.kind in options.kind]
    cases = [case for case in cases if not options.only or case.name in options.only]
    began, lines = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="fleetune-failures-", ignore_cleanup_errors=True) as name:
        place = Workshop(Path(name))
        for case in cases:
            seen = run_case(case, place)
            wrong = problems(case.expected, seen)
            lines.append({
                "case": case.name, "kind": case.kind, "right": not wrong, "wrong": wrong, "exit": seen.exit,
                "acts": seen.acts, "starts": seen.starts, "seconds": round(seen.seconds, 1),
            })  # fmt: skip
            tell(lines[-1], options.out)
            if wrong or options.verbose:
                print(seen.output, file=sys.stderr, flush=True)
    found = summary(lines, time.monotonic() - began)
    tell(found, options.out)
    return 0 if found["share"] >= WANTED else 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.failures", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one or two cases of each kind")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[case.name for case in CASES])
    parser.add_argument("--kind", nargs="+", choices=list(Kind))
    parser.add_argument("--out", type=Path, metavar="FILE", help="append the lines to this file too")
    parser.add_argument("--verbose", action="store_true", help="show the output of every run, on stderr")
    return parser.parse_args()


def summary(lines: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    right = sum(line["right"] for line in lines)
    parts = Counter(part for line in lines for part in {wrong.partition(":")[0] for wrong in line["wrong"]})
    return {
        "cases": len(lines), "right": right, "share": round(right / max(len(lines), 1), 3), "wrong_by_part": parts,
        "wrong": [line["case"] for line in lines if not line["right"]], "seconds": round(seconds, 1),
        "load_average": os.getloadavg()[0],
    }  # fmt: skip


def tell(line: dict[str, Any], out: Path | None) -> None:
    text = json.dumps(line)
    print(text, flush=True)
    if out is not None:
        with out.open("a") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
