"""How fast a worker gets its rows, how soon the first ones come, and how long training waits for them.

    python -m bench.data [--rounds 2] [--workers 1 2 3] [--seconds 30] [--steps 25] [--no-training] [--smoke]

Three things are measured, all of them with the project's own stream and its own data configuration of Ray Train:

* rate: rows/s that each of 1, 2 and 3 workers gets who do nothing but take them, through Ray Data in a gang and from
  the plain reader, by windows of time, after what was read ahead is used up;
* early, late: the first steps of a run that has no more, and as many at the end of a long one, on data whose other
  shards do not exist; every row is compared with the plan;
* training: the wait for rows as a share of the steps of bench/train.py.

Lines for people go to stderr, one JSON object for each result to stdout, the summary last.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import multiprocessing
import os
import pathlib
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from bench import train
from bench.train import emit, say, spread
from jobs.data.order.permutation import Rows
from jobs.data.order.stream import StepRows, Stream, plain_steps
from jobs.data.prepared import (
    INDEX_SCHEMA,
    ROW_SCHEMA,
    ROWS_PER_BLOCK,
    FileEntry,
    Manifest,
    SplitManifest,
    write_manifest,
)
from jobs.run.paths import JobPaths
from jobs.spec.finetune import Spec

TOKENS = 512
ROWS_PER_STEP, PER_DEVICE = 24, 4  # the same for 1, 2 and 3 workers
TOTAL_STEPS = 1_000_000
FEW_STEPS = 400  # of which `early` and `late` are
WINDOW_S = 2.0
SKIPPED = 0.5  # of the windows, at the beginning
WAYS, KINDS = ("ray", "plain"), ("rate", "early", "late")


@dataclass(frozen=True)
class Reading:
    """What each worker of a gang shall read."""

    stream: Stream  # of worker 0
    run_root: str
    start: int
    seconds: float | None  # of reading; None is to the end, every row compared with the plan

    @property
    def workers(self) -> int:
        return self.stream.spec.resources.num_workers

    def of(self, worker: int) -> Stream:
        return Stream(self.stream.prepared_root, self.stream.spec, worker)

    def answer(self, worker: int) -> pathlib.Path:
        return pathlib.Path(self.run_root, f"worker-{worker}.json")


def main() -> None:
    options = arguments()
    results = []
    with tempfile.TemporaryDirectory(prefix="fleetune-bench-", dir=options.work) as name:
        bench = Bench(pathlib.Path(name), options.rows, options.seconds)
        for number in range(options.rounds):
            for workers in options.workers:
                for way in options.ways:
                    for kind in KINDS:
                        results.append(bench.measure(kind, way, workers, number))
                        emit(results[-1])
        if not options.no_training:
            for result in waits_of_training(pathlib.Path(name), options):
                results.append(result)
                emit(result)
    emit(summary(results))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--workers", type=int, nargs="+", choices=(1, 2, 3), default=[1, 2, 3])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--rows", type=int, default=50_000, help=f"of {TOKENS} tokens")
    parser.add_argument("--seconds", type=float, default=30.0, help=f"of reading, in windows of {WINDOW_S:.0f} s")
    parser.add_argument("--steps", type=int, default=25, help="of training, the first of them warm-up")
    parser.add_argument("--no-training", action="store_true", help="leave training out, and what it downloads")
    parser.add_argument("--smoke", action="store_true", help="one short round: does it run at all?")
    parser.add_argument("--work", help="folder for scratch files; the system's own if left out")
    options = parser.parse_args()
    if options.smoke:
        options.rounds, options.seconds, options.rows = 1, 4 * WINDOW_S, 20_000
        options.steps = train.WARMUP_STEPS + train.LAST_STEPS + 5
    if options.seconds < 4 * WINDOW_S:
        parser.error(f"--seconds {options.seconds} is too short: the rows read ahead would count for much")
    if options.rows < 4 * FEW_STEPS * ROWS_PER_STEP // 2:
        parser.error(f"--rows {options.rows} leaves few shards that the late steps do not need")
    return options


class Bench:
    """The data, and how it is read."""

    def __init__(self, folder: pathlib.Path, rows: int, seconds: float) -> None:
        self.folder, self.seconds = folder, seconds
        say(f"writing {rows:,} rows of {TOKENS} tokens ...")
        write_data(folder / "all", rows, blocks_per_shard=256)
        # A shard for each block, of which only those are there that the late steps need.
        plan = Stream(str(folder / "all"), spec_of(1, TOTAL_STEPS), 0).open().plan
        self.late_start = TOTAL_STEPS - FEW_STEPS
        late = np.unique(plan.rows_of_steps(self.late_start, TOTAL_STEPS) // ROWS_PER_BLOCK)
        self.shards, self.late_shards = -(-rows // ROWS_PER_BLOCK), len(late)
        write_data(folder / "late", rows, blocks_per_shard=1, only=late)

    def measure(self, kind: str, way: str, workers: int, number: int) -> dict[str, Any]:
        """One gang, from start to end."""
        root = self.folder / f"{kind}-{way}-{workers}-{number}"
        root.mkdir()
        spec = spec_of(workers, FEW_STEPS if kind == "early" else TOTAL_STEPS)
        reading = Reading(
            stream=Stream(str(self.folder / ("late" if kind == "late" else "all")), spec, 0),
            run_root=str(root),
            start=self.late_start if kind == "late" else 0,
            seconds=self.seconds if kind == "rate" else None,
        )
        load = os.getloadavg()[0]
        (read_on_ray if way == "ray" else read_plainly)(reading)
        answers = [json.loads(reading.answer(worker).read_text()) for worker in range(workers)]
        result = {
            "result": kind, "way": way, "workers": workers, "round": number, "start": reading.start,
            "first_rows_s": [round(answer["first_rows_s"], 4) for answer in answers],
            "load_average": load,
        }  # fmt: skip
        if kind == "rate":
            result["windows_rows_per_s"] = [[round(rate) for rate in answer["rates"]] for answer in answers]
            result["rows_per_s"] = [round(steady(answer["rates"])) for answer in answers]
        else:
            result["rows_as_planned"] = all(answer["as_planned"] for answer in answers)
        if kind == "late":
            result |= {"shards": self.shards, "shards_there": self.late_shards}
        rates = f"{result['rows_per_s']} rows/s, " if kind == "rate" else ""
        say(f"{kind}, {way}, {workers} workers: {rates}first rows after {first_s(result):.2f} s")
        return result


def first_s(result: dict[str, Any]) -> float:
    return float(max(result["first_rows_s"]))


def steady(rates: list[float]) -> float:
    """Median of the later windows."""
    return statistics.median(rates[int(SKIPPED * len(rates)) :])


def read_on_ray(reading: Reading) -> None:
    """A gang of Ray Train, on a Ray of this machine as a run starts it."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from cluster.ray.connection import connected
    from jobs.planning import gang_of

    with connected(None, gang_of(reading.stream.spec)):
        TorchTrainer(
            ray_worker,
            train_loop_config={"reading": reading},
            torch_config=TorchConfig(backend="gloo"),
            scaling_config=ScalingConfig(num_workers=reading.workers, resources_per_worker={"CPU": 1.0}),
            run_config=RunConfig(
                name="ray",
                storage_path=reading.run_root,
                worker_runtime_env={"env_vars": {"MALLOC_ARENA_MAX": "1"}},
            ),
        ).fit()


def ray_worker(config: dict[str, Any]) -> None:
    from jobs.training.worker_context import RayWorkerContext

    reading: Reading = config["reading"]
    worker = RayWorkerContext(JobPaths(reading.run_root), 0)
    stream = reading.of(worker.rank)
    asked = time.perf_counter()
    read(reading, worker.rank, worker.steps(stream, reading.start), asked)


def read_plainly(reading: Reading) -> None:
    """As many processes as the gang has workers."""
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=plain_worker, args=(reading, worker)) for worker in range(reading.workers)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        if worker.exitcode:
            raise SystemExit(f"a worker ended with {worker.exitcode}")


def plain_worker(reading: Reading, worker: int) -> None:
    asked = time.perf_counter()
    steps: Any = plain_steps(reading.of(worker), reading.start)
    with contextlib.closing(steps):
        read(reading, worker, steps, asked)
    del steps
    for thread in threading.enumerate():  # one that is still in pyarrow as Python ends would abort the process
        if thread.name == "read-ahead":
            thread.join()


def read(reading: Reading, worker: int, steps: Iterator[StepRows], asked: float) -> None:
    """Take the rows of steps, touch every token of them, and leave what was seen in a file."""
    first = next(steps)
    seen = [sample_ids(first)]
    began = time.perf_counter()
    rates: list[float] = []
    rows, opened = 0, began
    for step in steps:
        for micro in step.micros:
            int(micro["input_ids"].chunk(0).flatten().to_numpy().sum())
            rows += micro.num_rows
        if reading.seconds is None:
            seen.append(sample_ids(step))
        now = time.perf_counter()
        if now - opened >= WINDOW_S:
            rates.append(rows / (now - opened))
            rows, opened = 0, now
        if reading.seconds is not None and now - began >= reading.seconds:
            break
    answer = {"first_rows_s": began - asked, "rates": rates}
    if reading.seconds is None:
        stream = reading.of(worker).open()
        planned = [np.concatenate(stream.dealt(step)) for step in range(reading.start, stream.plan.total_steps)]
        answer["as_planned"] = np.concatenate(seen).tolist() == np.concatenate(planned).tolist()
    reading.answer(worker).write_text(json.dumps(answer))


def sample_ids(step: StepRows) -> Rows:
    """Sample ids of a step's rows, which are the rows' own numbers here."""
    ids: Rows = np.concatenate([micro["sample_ids"].combine_chunks().flatten().to_numpy() for micro in step.micros])
    return ids


def waits_of_training(folder: pathlib.Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Real training, as bench/train.py does it: the wait for rows as a share of the steps after the warm-up."""
    bench = train.Bench(folder / "training", options.steps)
    bench.folder.mkdir()
    bench.prepare()
    for number in range(options.rounds):
        for kind in ("ray", "torchrun"):
            load = os.getloadavg()[0]
            bench.run(kind, number)
            records = sorted(bench.records(f"{kind}-{number}"), key=lambda record: record["step"])
            later = records[train.WARMUP_STEPS :]
            waited, took = (sum(record[name] for record in later) for name in ("data_wait_s", "step_time_s"))
            yield {
                "result": "training", "way": kind, "round": number, "steps": len(later),
                "data_wait_s": waited, "step_time_s": took, "share": waited / took,
                "longest_wait_s": max(record["data_wait_s"] for record in later),
                "first_wait_s": records[0]["data_wait_s"], "load_average": load,
            }  # fmt: skip


def spec_of(workers: int, steps: int) -> Spec:
    return Spec.model_validate(
        {
            "model": {"path": "none", "task": "causal-lm"},
            "data": {"train": "none", "format": "text", "seq_len": TOKENS},
            "train": {
                "max_steps": steps,
                "global_batch_size": ROWS_PER_STEP,
                "per_device_train_batch_size": PER_DEVICE,
            },
            "resources": {"num_workers": workers, "gpus_per_worker": 0},
        }
    )


def write_data(root: pathlib.Path, rows: int, blocks_per_shard: int, only: Rows | None = None) -> None:
    """Prepared data of random tokens; row i is sample i.

    Args:
        only: numbers of the shards that are written; the others are listed and not there.
    """
    folder = root / "train"
    folder.mkdir(parents=True)
    per_shard = blocks_per_shard * ROWS_PER_BLOCK
    shards = []
    for number, first in enumerate(range(0, rows, per_shard)):
        shards.append(FileEntry(name=f"shard-{number:05d}.arrow", bytes=0, sha256=""))
        if only is None or number in only:
            last = min(first + per_shard, rows)
            starts = range(first, last, ROWS_PER_BLOCK)
            write_file(
                folder / shards[-1].name, ROW_SCHEMA, [block_of(start, min(start + 64, last)) for start in starts]
            )
    ids = pa.ListArray.from_arrays(np.arange(rows + 1, dtype=np.int32), np.arange(rows, dtype=np.int64))
    counts = pa.array(np.full(rows, TOKENS, dtype=np.int32))
    write_file(folder / "index.arrow", INDEX_SCHEMA, [[counts, counts, ids]])
    split = SplitManifest(
        rows=rows,
        samples=rows,
        tokens=rows * TOKENS,
        targets=rows * TOKENS,
        longest_row=TOKENS,
        blocks_per_shard=blocks_per_shard,
        shards=tuple(shards),
        index=FileEntry(name="index.arrow", bytes=0, sha256=""),
    )
    manifest = Manifest(fingerprint=root.name, made_from={}, splits={"train": split}, pad_token_id=0, versions={})
    write_manifest(str(root), manifest)


def block_of(start: int, stop: int) -> list[Any]:
    """The columns of rows start..stop-1."""
    rows = stop - start
    ends = np.arange(rows + 1, dtype=np.int32)
    ids = np.random.default_rng(start).integers(0, 2**15, rows * TOKENS, dtype=np.int32)
    tokens = pa.ListArray.from_arrays(ends * TOKENS, ids)
    lengths = pa.ListArray.from_arrays(ends, np.full(rows, TOKENS, dtype=np.int32))
    return [tokens, tokens, lengths, pa.ListArray.from_arrays(ends, np.arange(start, stop, dtype=np.int64))]


def write_file(path: pathlib.Path, schema: Any, batches: list[list[Any]]) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for columns in batches:
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Over all rounds: rows/s and first rows of each gang's slowest worker, and the share of waiting in training."""
    gangs = sorted({(one["way"], one["workers"]) for one in results if one["result"] == "rate"})
    shares: dict[str, list[float]] = {}
    for one in results:
        if one["result"] == "training":
            shares.setdefault(one["way"], []).append(one["share"])
            say(f"training, {one['way']}: waiting for rows is {100 * one['share']:.3f} % of the steps")
    return {
        "result": "summary",
        **{f"{way}-{workers}": of_gang(results, way, workers) for way, workers in gangs},
        "rows_as_planned": all(one["rows_as_planned"] for one in results if one["result"] in ("early", "late")),
        "share_of_waiting_in_training": {way: spread(found) for way, found in shares.items()},
        "target_share": 0.01,
        "tokens": TOKENS,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {package: importlib.metadata.version(package) for package in (*train.PACKAGES, "pyarrow")},
        "load_average_before_max": max(one["load_average"] for one in results),
    }


def of_gang(results: list[dict[str, Any]], way: str, workers: int) -> dict[str, Any]:
    mine = [one for one in results if one["way"] == way and one.get("workers") == workers]
    rate = spread([min(one["rows_per_s"]) for one in mine if one["result"] == "rate"])
    firsts = {kind: spread([first_s(one) for one in mine if one["result"] == kind]) for kind in KINDS}
    shown = ", ".join(f"{kind} {first['median']:.2f} s" for kind, first in firsts.items())
    say(f"{way:9} {workers} workers: {rate['median']:9,.0f} rows/s each; first rows: {shown}")
    return {
        "rows_per_s_per_worker": rate,
        "tokens_per_s_per_worker": round(rate["median"] * TOKENS),
        "first_rows_s": firsts,
    }


if __name__ == "__main__":
    main()
