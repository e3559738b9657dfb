"""How fast data is prepared, in how much memory, and how full its rows are.

    python -m bench.prepare [--rounds 2] [--rows 80000] [--processes 2] [--rows-file FILE --model DIR] [--smoke]

Three things are measured on chat rows, each of them in fresh processes on the same few CPUs:

* rate: rows/s of whole commands, from the start of the process to its end, in turns: `prepare` on Ray and in one
  process, beside two stock ways that only tokenise, `datasets.map` and Ray Data;
* memory: the highest sum of PSS of all processes of `prepare` on Ray, for sources of growing size;
* density: the share of the rows' places that tokens fill, for some lengths of rows.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import psutil

# Nothing heavy is imported here: each way that is measured starts as this file, and pays for its own imports only.

LAYERS = 4  # of the model, of which only the tokenizer is used
SEQ_LEN, MORE_SEQ_LENS = 1024, (2048, 4096)
WAYS = ("ray", "datasets", "plain", "ray-data")
TARGET_RATIO, TARGET_DENSITY = 1.0, 0.98
WARM_UP_ROWS, LOOK_EVERY_S = 200, 0.2
RUN_TIMEOUT_S, END_TIMEOUT_S = 3600.0, 30.0  # of a command; and of what it has started, after it
PACKAGES = ("fleetune", "ray", "datasets", "transformers", "tokenizers", "pyarrow")

WHOLE, WITHOUT = "rows_per_s", "rows_per_s_without_ray_start"
SAID = {"rate": (WHOLE, WITHOUT, "wall_s", "cpu_s"), "density": ("seq_len", "density"), "memory": ("tokens", "peak_mb")}

Answer = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """What a fresh process shall do."""

    way: str
    rows_file: str
    model: str
    seq_len: int
    processes: int
    folder: str  # for what it writes


def work(task: Task) -> None:
    """The whole of a measured process."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: task.processes])  # and so for its children
    os.cpu_count = lambda: task.processes  # what a Ray of this machine is started with
    ways = {"ray": fleetune, "plain": fleetune, "datasets": datasets_map, "ray-data": ray_data}
    pathlib.Path(task.folder, "answer.json").write_text(json.dumps(ways[task.way](task)))


def fleetune(task: Task) -> Answer:
    """What `fleetune data prepare` does with larger data (on Ray), and with small data (here)."""
    clock = Clock()
    from cluster.ray.connection import connected
    from jobs.data.preparation.prepare import prepare

    spec = spec_of(task)
    on_ray = task.way == "ray"
    clock.lap("imports")
    with connected(None, None) if on_ray else contextlib.nullcontext():
        clock.lap("ray_start")
        prepared = prepare(spec, task.model, engine="ray" if on_ray else "plain", say=print)
        clock.lap("work")
    clock.lap("ray_end")
    (rows,) = prepared.manifest.splits["train"]
    filled = rows.tokens / (rows.rows * spec.data.seq_len)
    return clock.answer(rows.samples, rows.tokens) | {"packed_rows": rows.rows, "density": filled}


def spec_of(task: Task) -> Any:
    from jobs.spec.finetune import Spec

    model = {"path": task.model, "task": "causal-lm"}
    data = {"train": task.rows_file, "format": "chat", "seq_len": task.seq_len, "packing": True}
    return Spec.model_validate({"model": model, "data": data, "storage_path": os.path.join(task.folder, "runs")})


def datasets_map(task: Task) -> Answer:
    """As most recipes have it: the chat template and the tokenizer, a batch at a time, and nothing else."""
    clock = Clock()
    import pyarrow.compute as pc
    from datasets import load_dataset
    from transformers import AutoTokenizer

    clock.lap("imports")
    rows = load_dataset("json", data_files=task.rows_file, split="train", cache_dir=os.path.join(task.folder, "cache"))
    clock.lap("load")
    tokenizer = AutoTokenizer.from_pretrained(task.model)

    def tokenise_batch(batch: Any) -> Any:
        return tokenizer.apply_chat_template(batch["messages"], tokenize=True, return_dict=True)

    done = rows.map(tokenise_batch, batched=True, num_proc=task.processes, remove_columns=rows.column_names)
    clock.lap("work")
    return clock.answer(len(done), pc.sum(pc.list_value_length(done.data["input_ids"])).as_py())


def ray_data(task: Task) -> Answer:
    """The same with Ray Data as its documentation has it, into Parquet files."""
    clock = Clock()
    import pyarrow.parquet as pq
    import ray

    from bench import prepare  # this file, by a name under which Ray's workers import it

    clock.lap("imports")
    ray.init(address="local", num_cpus=task.processes, include_dashboard=False, log_to_driver=False)
    clock.lap("ray_start")
    done = os.path.join(task.folder, "done")
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = ray.data.read_json(task.rows_file)
    tokenise = functools.partial(prepare.tokenise_table, model=task.model)
    rows.map_batches(tokenise, batch_format="pyarrow").write_parquet(done)
    clock.lap("work")
    ray.shutdown()
    clock.lap("ray_end")
    files = [pq.read_metadata(path) for path in pathlib.Path(done).glob("*.parquet")]
    groups = [file.row_group(number) for file in files for number in range(file.num_row_groups)]
    return clock.answer(sum(file.num_rows for file in files), sum(group.column(0).num_values for group in groups))


def tokenise_table(table: Any, model: str) -> Any:
    import pyarrow as pa

    encoded = tokenizer_of(model).apply_chat_template(table["messages"].to_pylist(), tokenize=True, return_dict=True)
    return pa.table({"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]})


@functools.cache
def tokenizer_of(model: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)


class Clock:
    """Seconds of the parts of a process."""

    def __init__(self) -> None:
        self._last, self._parts = time.perf_counter(), dict[str, float]()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self._parts[name], self._last = now - self._last, now

    def answer(self, samples: int, tokens: int) -> Answer:
        return {"samples": samples, "tokens": tokens, "parts_s": {k: round(v, 3) for k, v in self._parts.items()}}


def main() -> None:
    from bench.train import emit, say

    options, results = arguments(), list[Answer]()
    with tempfile.TemporaryDirectory(prefix="fleetune-bench-", dir=options.work) as folder:
        for result in Bench(pathlib.Path(folder), options).results():
            say(", ".join(f"{name} {result[name]}" for name in ("result", "way", *SAID[result["result"]])))
            emit(result)
            results.append(result)
    emit(summary(results, options))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2, help="of all ways, in turns")
    parser.add_argument("--rows", type=int, default=80_000, help="that are prepared: the file's, repeated")
    parser.add_argument("--processes", type=int, default=2, help="logical CPUs that every way is given")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--memory", type=int, nargs="*", default=[1, 4], help="sizes of sources, in --rows")
    parser.add_argument("--seq-lens", type=int, nargs="*", default=list(MORE_SEQ_LENS), help=f"beside {SEQ_LEN}")
    parser.add_argument("--rows-file", help="JSONL with a `messages` column; left out, one is downloaded")
    parser.add_argument("--model", help="directory with a tokenizer that has a chat template; as --rows-file")
    parser.add_argument("--smoke", action="store_true", help="one round of few rows: does it run at all?")
    parser.add_argument("--work", help="folder for scratch files; the system's own if left out")
    options = parser.parse_args()
    if options.smoke:
        options.rounds, options.rows, options.memory, options.seq_lens = 1, 2_000, [1], []
    if options.processes > (cpus := len(os.sched_getaffinity(0))):
        parser.error(f"--processes {options.processes}, but this machine gives {cpus} CPUs")
    return options


class Bench:
    """The rows, and the processes that prepare them."""

    def __init__(self, folder: pathlib.Path, options: argparse.Namespace) -> None:
        from bench import models
        from bench.train import say

        self.folder, self.options = folder, options
        if not (options.model and options.rows_file):
            say("fetching and converting the model and the rows (once) ...")
        self.model = str(pathlib.Path(options.model or models.smollm2_slice(LAYERS)).resolve())
        with open(options.rows_file or models.instructions(), encoding="utf-8") as file:
            self.source = [json.loads(line)["messages"] for line in file]

    def results(self) -> Iterator[Answer]:
        options = self.options
        rows = self.rows_file(options.rows)
        if not options.smoke:  # all libraries are read from the disk once
            some = self.rows_file(WARM_UP_ROWS)
            for way in options.ways:
                self.run(way, some)
        for number in range(options.rounds):
            for way in options.ways if number % 2 == 0 else reversed(options.ways):
                yield {"result": "rate", "round": number, **self.run(way, rows)}
        for seq_len in options.seq_lens:
            yield {"result": "density", **self.run("ray", rows, seq_len)}
        rows.unlink()
        for size in options.memory:
            rows = self.rows_file(options.rows * size)
            yield {"result": "memory", **self.run("ray", rows, memory=True)}
            rows.unlink()

    def rows_file(self, count: int) -> pathlib.Path:
        """`count` rows of the source, repeated; every copy says its number, so that none is equal to another."""
        path = self.folder / f"{count}.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for number in range(count):
                copy, place = divmod(number, len(self.source))
                first, *others = self.source[place]
                messages = [{**first, "content": f"{first['content']} ({copy})"}, *others]
                file.write(json.dumps({"messages": messages}) + "\n")
        return path

    def run(self, way: str, rows: pathlib.Path, seq_len: int = SEQ_LEN, memory: bool = False) -> Answer:
        """One fresh process, from its start until it and all that it has started have ended."""
        with (
            tempfile.TemporaryDirectory(dir=self.folder) as folder,
            tempfile.TemporaryDirectory(prefix="fb-") as short,  # a path that sockets can have, whatever --work is
        ):
            task = Task(way, str(rows), self.model, seq_len, self.options.processes, folder)
            command = [sys.executable, "-m", "bench.prepare", "--work-on", json.dumps(asdict(task))]
            load, log = os.getloadavg()[0], pathlib.Path(folder, "log")
            with log.open("w") as output:
                process = subprocess.Popen(command, env=environment(task, short), stdout=output, stderr=output)
                family = Family(process, memory)
                try:
                    code, wall_s = family.watch()
                finally:
                    left = family.end()
            if code != 0:
                raise SystemExit(f"{way} ended with {code}:\n{log.read_text()[-6000:]}")
            if left:
                raise SystemExit(f"{way} left processes behind, which were killed: {', '.join(map(str, left))}")
            answer: Answer = json.loads(pathlib.Path(folder, "answer.json").read_text())
        ray_s = sum(answer["parts_s"].get(part, 0.0) for part in ("ray_start", "ray_end"))
        count = int(rows.stem)
        rates = {WHOLE: round(count / wall_s, 1), WITHOUT: round(count / (wall_s - ray_s), 1)}
        facts = {"way": way, "rows": count, "seq_len": seq_len, "wall_s": round(wall_s, 3), "load_average": load}
        return facts | rates | family.facts() | answer


def environment(task: Task, short: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "TOKENIZERS_PARALLELISM")}
    kept |= {"TMPDIR": short, "RAY_TMPDIR": short, "HF_HOME": short, "HF_HUB_OFFLINE": "1"}
    if task.way == "plain":  # it has the tokenizer's own threads
        return kept | {"RAYON_NUM_THREADS": str(task.processes)}
    return kept | {"TOKENIZERS_PARALLELISM": "false"}


class Family:
    """A process and all that it starts: how long they work, and how much memory they have at one moment."""

    def __init__(self, process: subprocess.Popen[bytes], memory: bool) -> None:
        self._process, self._memory, self._started = process, memory, time.perf_counter()
        self._root = psutil.Process(process.pid)
        self._cpu_s: dict[psutil.Process, float] = {}
        self._peak: dict[str, float] = {}  # MB by the name of a process, when they were most together
        self._driver_peak, self._measure = 0.0, "pss"

    def watch(self) -> tuple[int, float]:
        """Wait for the end of the first one; its exit status, and the seconds that it took."""
        while time.perf_counter() - self._started < RUN_TIMEOUT_S:
            sizes: dict[str, float] = {}
            for process in [self._root, *self._root.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    self._look(process, sizes)
            self._driver_peak = max(self._driver_peak, sizes.get("driver", 0.0))
            self._peak = max(self._peak, sizes, key=lambda one: sum(one.values()))
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self._process.wait(LOOK_EVERY_S), time.perf_counter() - self._started
        raise SystemExit(f"it took more than {RUN_TIMEOUT_S:.0f} s")

    def _look(self, process: psutil.Process, sizes: dict[str, float]) -> None:
        from bench.train import name_of

        used = process.cpu_times()
        self._cpu_s[process] = used.user + used.system
        if self._memory:
            name = "driver" if process == self._root else name_of(process.cmdline() or [process.name()])
            sizes[name] = sizes.get(name, 0.0) + self._bytes(process) / 1e6

    def _bytes(self, process: psutil.Process) -> int:
        with contextlib.suppress(psutil.AccessDenied):
            return int(process.memory_full_info().pss)
        self._measure = "rss where pss cannot be read"  # pages that are shared count more than once
        return int(process.memory_info().rss)

    def end(self) -> list[psutil.Process]:
        """Wait for all to end; those that do not are killed, and given."""
        self._process.terminate()  # where it was interrupted; else it has ended, and this does nothing
        until = time.monotonic() + END_TIMEOUT_S
        while (left := [process for process in self._cpu_s if lives(process)]) and time.monotonic() < until:
            time.sleep(LOOK_EVERY_S)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        return left

    def facts(self) -> Answer:
        facts: Answer = {"cpu_s": round(sum(self._cpu_s.values()), 2)}
        if self._memory:
            at_peak = sorted(self._peak.items(), key=lambda item: -item[1])
            facts |= {"peak_mb": round(sum(self._peak.values()), 1), "driver_peak_mb": round(self._driver_peak, 1)}
            facts |= {"at_peak_mb": {name: round(size, 1) for name, size in at_peak}, "measure": self._measure}
        return facts


def lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def summary(results: list[Answer], options: argparse.Namespace) -> Answer:
    from bench.train import spread

    ways = {way: [one for one in results if one["result"] == "rate" and one["way"] == way] for way in options.ways}
    whole = [one for one in results if "density" in one and one["rows"] == options.rows]
    return {
        "result": "summary",
        "rows_per_s": {way: spread([one[WHOLE] for one in of_way]) for way, of_way in ways.items()},
        "over_datasets": ratios(ways),
        "target_over_datasets": TARGET_RATIO,
        "cpu_s": {way: statistics.median(one["cpu_s"] for one in of_way) for way, of_way in ways.items()},
        "parts_s_of_first_round": {way: of_way[0]["parts_s"] for way, of_way in ways.items()},
        "density": {str(one["seq_len"]): round(one["density"], 5) for one in whole},
        "target_density": TARGET_DENSITY,
        "memory": growth([one for one in results if one["result"] == "memory"]),
        "rows": options.rows,
        "processes": options.processes,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
        "load_average_before_max": max(one["load_average"] for one in results),
    }


def ratios(ways: dict[str, list[Answer]]) -> Answer:
    """Rates over that of `datasets` in the same round."""
    from bench.train import say, spread

    found: Answer = {}
    for way, of_way in ways.items() if "datasets" in ways else ():
        for name in (WHOLE, WITHOUT) if way != "datasets" else ():
            each = [one[name] / stock[WHOLE] for one, stock in zip(of_way, ways["datasets"], strict=True)]
            found.setdefault(way, {})[name] = spread(each) | {"rounds": [round(ratio, 4) for ratio in each]}
            say(f"{way} over datasets, {name}: {found[way][name]['median']:.3f}")
    return found


def growth(memory: list[Answer]) -> Answer:
    """Peaks by the tokens of a source; and MB for each million tokens that the last has more than the first."""
    from bench.train import say

    found: Answer = {"peak_mb": {str(one["tokens"]): one["peak_mb"] for one in memory}}
    for name in ("peak_mb", "driver_peak_mb") if len(memory) > 1 else ():
        more, millions = (memory[-1][key] - memory[0][key] for key in (name, "tokens"))
        found[f"{name}_per_million_tokens"] = round(more / millions * 1e6, 3)
        say(f"{name} grows by {found[f'{name}_per_million_tokens']} for a million tokens")
    return found


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work-on"]:
        work(Task(**json.loads(sys.argv[2])))
    else:
        main()
