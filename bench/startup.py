"""Seconds from a command to the end of its first step, and of a run of three steps in all: Ray beside torchrun.

    python -m bench.startup [--rounds 5] [--smoke]

The same tiny classification runs in turns under `fleetune run`, which starts a Ray of its own, and under torchrun. Its
data are prepared and all caches filled by a run of each that is not counted. The times are those at which lines come
out of the command, as a user sees them. Lines for people go to stderr, one JSON object for each run to stdout, the
summary last.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from jobs.spec.load import dump_spec
from tests.support import tiny

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
WITHIN_S = 300.0

# A line that contains the text ends the phase.
PHASES = (
    ("first line", "Z run "),
    ("connect", "preparing the data"),
    ("data", ("starting 2 workers", "loading the model")),
    ("start workers", "loading the model"),
    ("load the model", "training 3 steps"),
    ("first step", "Z step 1/3"),
    ("other steps", "exporting the model"),
    ("export", "Z succeeded after"),
)
WAYS = {
    "ray": [str(BIN / "fleetune"), "run"],
    "torchrun": [str(BIN / "torchrun"), "--nproc-per-node", "2", "-m", "jobs.finetune"],
}


def main() -> int:
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns on stdout that it found no GPU
    options = arguments()
    with tempfile.TemporaryDirectory(prefix="fleetune-startup-") as folder:
        spec = written_spec(Path(folder))
        for way in WAYS:
            say(f"{way}: a run that is not counted")
            measured(way, spec)
        found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for number in range(options.rounds):
            for way in sorted(WAYS, reverse=number % 2 == 1):
                load = os.getloadavg()[0]
                times = measured(way, spec)
                found[way].append(times)
                print(json.dumps({"way": way, "round": number, "load_average": load, **times}), flush=True)
                say(f"{way}: step 1 after {times['to first step']:.1f} s, in all {times['in all']:.1f} s")
    print(json.dumps(summary(found)), flush=True)
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="one round")
    options = parser.parse_args()
    if options.smoke:
        options.rounds = 1
    return options


def written_spec(folder: Path) -> Path:
    model = tiny.save_model(folder / "bert", "bert")
    data = tiny.write_labelled(folder / "labelled.jsonl", 200, 3)
    spec = tiny.spec_of(
        folder / "runs", model, data, classify=True, train__max_steps=3, train__global_batch_size=8,
        resources__cpus_per_worker=1,
    )  # fmt: skip
    path = folder / "job.json"
    path.write_bytes(dump_spec(spec))
    return path


def measured(way: str, spec: Path) -> dict[str, float]:
    """Seconds of each phase, to the first step, and in all. Raises RuntimeError: the run failed."""
    began = time.monotonic()
    process = subprocess.Popen(
        [*WAYS[way], str(spec)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    lines, ends = [], {}
    for line in process.stdout:
        now = time.monotonic() - began
        lines.append(line)
        for name, texts in PHASES:
            if name not in ends and any(text in line for text in ((texts,) if isinstance(texts, str) else texts)):
                ends[name] = now
    code = process.wait(WITHIN_S)
    in_all = time.monotonic() - began
    if code != 0 or len(ends) < len(PHASES):
        missing = [name for name, _ in PHASES if name not in ends]
        raise RuntimeError(f"{way} ended with {code}, without the end of {missing}:\n{''.join(lines)}")
    times, before = {}, 0.0
    for name, _ in PHASES:
        times[name], before = round(max(ends[name] - before, 0.0), 2), ends[name]
    return times | {
        "end": round(in_all - before, 2),
        "to first step": round(ends["first step"], 2),
        "in all": round(in_all, 2),
    }


def summary(found: dict[str, list[dict[str, float]]]) -> dict[str, object]:
    """Medians by way, and the median of the rounds' ratios."""
    medians = {
        way: {name: statistics.median(times[name] for times in rounds) for name in rounds[0]}
        for way, rounds in found.items()
    }
    ratios = {
        name: round(
            statistics.median(
                ray[name] / torchrun[name] for ray, torchrun in zip(found["ray"], found["torchrun"], strict=True)
            ),
            2,
        )
        for name in ("to first step", "in all")
    }
    return {"medians": medians, "ratios": ratios, "rounds": len(found["ray"])}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
