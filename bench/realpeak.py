"""Makes real training steps in gangs of gloo processes, and counts the bytes of their tensors.

`bench.planning` starts it with `bench/allocations.c` preloaded, which counts what PyTorch's CPU allocator hands out:
also inside operators and on other threads. Workers are forks of one process, which has imported everything.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import importlib
import json
import multiprocessing
import os
import pathlib
import sys
import tempfile
import time
import traceback
import types
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist

from jobs.data.prepared import IGNORE_INDEX, ROW_SCHEMA
from jobs.planning import plan_batching
from jobs.spec.finetune import Spec
from jobs.spec.load import load_spec
from jobs.training.loop.loss import loss_sum
from jobs.training.model.batch import collate, model_logits
from jobs.training.model.cpu_optimizer import remove_left_lock
from jobs.training.model.engine import build_engine, import_deepspeed

_FORK = multiprocessing.get_context("fork")
WITHIN_S = 900  # a gang; one with offload may compile DeepSpeed's optimizer, on a busy machine for minutes


def full_rows(spec: Spec, rows: int, vocabulary: int) -> pa.Table:
    """Random rows of `seq_len` tokens; two samples in each if the spec packs, one of them shorter if it classifies."""
    draw, length = np.random.default_rng(0), spec.data.seq_len
    classify = spec.model.task == "sequence-classification"
    columns: dict[str, list[list[int]]] = {name: [] for name in ROW_SCHEMA.names}
    for number in range(rows):
        tokens = length - length // 2 * (classify and number == rows - 1 and rows > 1)
        ids = draw.integers(2, vocabulary, tokens).tolist()
        columns["input_ids"].append(ids)
        columns["labels"].append([number % 2] if classify else [IGNORE_INDEX, *ids[1:]])
        columns["lengths"].append([tokens // 2, tokens - tokens // 2] if spec.packed else [tokens])
        columns["sample_ids"].append([number])
    return pa.table(columns, schema=ROW_SCHEMA)


def steps_of(spec: Spec, steps: int, store: str, rank: int) -> dict[str, Any]:
    """Build the engine, make the steps, and return the bytes: after the build, and the peak of each part of a step."""
    counter = ctypes.CDLL(None)
    counter.live_bytes.restype = counter.peak_bytes.restype = ctypes.c_int64
    workers = spec.resources.num_workers
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=workers)
    gang: Any = types.SimpleNamespace(rank=rank, world_size=workers, device=torch.device("cpu"))
    before = counter.live_bytes()
    engine = build_engine(spec, spec.model.path, gang, pad_token_id=0)
    built = counter.live_bytes() - before
    batching, task = plan_batching(spec), spec.model.task
    table = full_rows(spec, batching.per_device, int(engine.module.module.config.get_text_config().vocab_size))
    moments: list[list[int]] = []

    def note() -> None:
        moments[-1].append(counter.peak_bytes() - before)
        counter.reset_peak()

    for _ in range(steps):
        moments.append([])
        for _ in range(batching.accumulation):
            counter.reset_peak()
            batch = collate(table, task, 0, gang.device)
            loss = loss_sum(model_logits(engine.module, batch, task), batch.targets)
            note()
            engine.backward(loss / 100)
            note()
            engine.step()
            note()
            del loss, batch
    peak = max(max(step) for step in moments)
    return {"built": built, "peak": peak, "after": counter.live_bytes() - before, "moments": moments}


def _worker(spec: Spec, steps: int, store: str, rank: int, told: Connection, stacks: pathlib.Path) -> None:
    os.environ["LOCAL_RANK"] = str(rank)
    with stacks.open("w") as late:
        faulthandler.dump_traceback_later(WITHIN_S - 5, file=late)
        try:
            told.send(steps_of(spec, steps, store, rank))
        except BaseException:
            told.send({"error": traceback.format_exc()[-3000:]})
    os._exit(0)  # no orderly end: threads of the process group may wait for peers that are gone


def measure(spec: Spec, steps: int) -> list[dict[str, Any]]:
    """Return what each rank of the gang measured, or how it failed: a rank that was killed, or waits forever, too."""
    if spec.train.zero.offload_optimizer:
        remove_left_lock(torch.device("cpu"))
    with tempfile.TemporaryDirectory() as name:
        folder, gang, found = pathlib.Path(name), [], {}
        waiting: dict[Connection, int] = {}
        for rank in range(spec.resources.num_workers):
            results, told = _FORK.Pipe(duplex=False)
            given = (spec, steps, f"{folder}/store", rank, told, folder / f"stacks-{rank}")
            gang.append(_FORK.Process(target=_worker, args=given))
            gang[rank].start()
            told.close()
            waiting[results] = rank
        until_s = time.monotonic() + WITHIN_S
        while waiting and (ready := wait(list(waiting), max(until_s - time.monotonic(), 0.0))):
            for results in set(waiting).intersection(ready):
                rank = waiting.pop(results)
                try:
                    found[rank] = results.recv()
                except EOFError:
                    gang[rank].join()
                    found[rank] = {"error": f"rank {rank} has ended with exit code {gang[rank].exitcode}"}
                    until_s = min(until_s, time.monotonic() + 10)  # its peers may wait for it
        for rank in waiting.values():
            found[rank] = {"error": f"rank {rank} waits: {(folder / f'stacks-{rank}').read_text()}"}
        for process in gang:
            process.kill()
            process.join()
    return [found[rank] for rank in sorted(found)]


def main(steps: int, spec_files: list[str]) -> None:
    torch.set_num_threads(1)
    # On some CPUs, oneDNN's products in bf16 take memory inside the operator: up to 15 % of these peaks. Those of GPUs
    # take none, so PyTorch's own loops are measured.
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    out = os.dup(1)
    os.dup2(2, 1)  # what libraries print goes to stderr
    deepspeed = import_deepspeed(torch.device("cpu"))
    deepspeed.accelerator.get_accelerator().is_fp16_supported = lambda: True  # what the CPU lacks is speed
    importlib.import_module("transformers.masking_utils")  # as every model does; it takes more than a second
    gc.collect()
    gc.freeze()  # DeepSpeed collects garbage several times in each gang
    for name in spec_files:
        line = json.dumps({"case": name, "ranks": measure(load_spec(name), steps)}) + "\n"
        with contextlib.suppress(BrokenPipeError):
            os.write(out, line.encode())


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
