"""Try every architecture of the installed transformers: `python -m bench.zoo [NAME...] [--jobs N] [--fresh]`.

Each is built tiny, with random weights, and trained through the product's own path (see `bench.zoo.trial`). Results
are kept, so that an interrupted run goes on where it was; what was seen with other code is tried again. `--docs`
writes docs/models.md from them.
"""

from __future__ import annotations

import argparse
import collections
import fnmatch
import json
import pathlib
import queue
import random
import shutil
import sys
import threading
from typing import Any

from bench.models import CACHE
from bench.zoo.cases import Case, all_cases, write_data
from bench.zoo.gang import ROOT, Gang
from bench.zoo.page import page
from bench.zoo.trial import Result, code_fingerprint, try_case

DOCUMENT = ROOT / "docs" / "models.md"


def main(arguments: list[str] | None = None) -> int:
    asked = _parsed(arguments)
    folder: pathlib.Path = asked.folder
    if asked.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "results.jsonl"
    known = {(result.model_type, result.task): result for result in read_results(kept)}
    chosen = [
        case for case in all_cases() if not asked.names or any(fnmatch.fnmatch(case.name, name) for name in asked.names)
    ]
    done = {key for key, result in known.items() if result.code == code_fingerprint()}
    todo = [case for case in chosen if asked.again or (case.model_type, case.task) not in done]
    random.Random(len(todo)).shuffle(todo)  # what a pass has seen when it is cut off is a fair sample
    with kept.open("a") as file:
        for result in run(todo, folder, asked.jobs):
            known[result.model_type, result.task] = result
            file.write(result.as_json() + "\n")
            file.flush()
            print(line_of(result), flush=True)
    results = [known[key] for key in sorted(known)]
    if asked.json:
        asked.json.write_text("[\n" + ",\n".join(result.as_json() for result in results) + "\n]\n")
    if asked.docs:
        DOCUMENT.write_text(page(results, all_cases()))
    print(summary(results))
    return int(any(known[case.model_type, case.task].outcome == "failed" for case in chosen))


def _parsed(arguments: list[str] | None) -> Any:
    parser = argparse.ArgumentParser(prog="python -m bench.zoo", description=__doc__)
    parser.add_argument("names", nargs="*", help="names such as llama-lm, bert-cls or qwen*; left out, all")
    parser.add_argument(
        "--jobs", type=int, default=2, help="models at a time; they share one gang of one process and one of two"
    )
    parser.add_argument("--folder", type=pathlib.Path, default=CACHE / "zoo", help="where results are kept")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    parser.add_argument("--again", action="store_true", help="try also what was tried with the same code")
    parser.add_argument("--json", type=pathlib.Path, help="write all results to this file")
    parser.add_argument("--docs", action="store_true", help="write docs/models.md")
    return parser.parse_args(arguments)


def read_results(path: pathlib.Path) -> list[Result]:
    """The kept results; the newest counts where a case was tried again."""
    return [Result(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def run(cases: list[Case], folder: pathlib.Path, jobs: int) -> Any:
    """Try all cases, `jobs` at a time: while one has the gang of one process, another has that of two."""
    write_data(folder)
    waiting: queue.SimpleQueue[Case] = queue.SimpleQueue()
    for case in cases:
        waiting.put(case)
    results: queue.SimpleQueue[Result | BaseException] = queue.SimpleQueue()
    gangs = [Gang(size, folder / "gang") for size in (1, 2)]
    for _ in range(jobs):
        threading.Thread(target=_keep_trying, args=(waiting, results, folder, gangs), daemon=True).start()
    try:
        for _ in cases:
            found = results.get()
            if isinstance(found, BaseException):
                raise found
            yield found
    finally:
        for gang in gangs:
            gang.stop()


def _keep_trying(waiting: Any, results: Any, folder: pathlib.Path, gangs: list[Gang]) -> None:
    try:
        while True:
            case = waiting.get_nowait()
            shutil.rmtree(folder / case.name, ignore_errors=True)
            results.put(try_case(case, folder, *gangs))
            shutil.rmtree(folder / case.name, ignore_errors=True)
    except queue.Empty:
        pass
    except BaseException as error:
        results.put(error)


def line_of(result: Result) -> str:
    about = result.reason or f"packed {result.packed}, differs by {result.alone:.0e} and {result.resume:.0e}"
    return f"{result.outcome:9} {result.model_type} {result.task} ({result.seconds:.0f} s): {about}"


def summary(results: list[Result]) -> str:
    counts = collections.Counter((result.task, result.outcome) for result in results)
    return "\n".join(f"{task}: {count} {outcome}" for (task, outcome), count in sorted(counts.items()))


if __name__ == "__main__":
    sys.exit(main())
