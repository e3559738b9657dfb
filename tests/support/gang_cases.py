"""Run several small jobs one after another in one gang: `torchrun --nproc_per_node N gang_cases.py CASES.json`.

A case is {"name", "spec" (JSON file), "run_root", "prepared_root", "logits" (file to write, or null)}. The loop is the
real one; rank 0 leaves the logits of the trained model on the first rows, to be compared by another process.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import sys

import numpy as np
import torch
import torch.distributed as dist

from cluster.settings import torchrun_world
from jobs.data.prepared import Prepared
from jobs.load import load_spec
from jobs.training import export, loop
from jobs.training.batch import collate, model_logits
from jobs.training.gang import TorchrunGang
from jobs.training.job import Job


def run_case(case: dict[str, str]) -> None:
    world = torchrun_world()
    assert world is not None
    spec = load_spec(case["spec"])
    job = Job(spec, case["run_root"], case["prepared_root"], spec.model.path)
    gang = TorchrunGang(job.paths, 0, 2, world)
    if case["name"] == "gpt2":  # read the export back sharded over the gang, as a large model is
        export.ONE_PROCESS_BYTES = 0
    with contextlib.closing(loop.Reporter(job.paths, gang.rank)) as reporter:
        run = loop.set_up(job, gang, reporter)
        state = loop.train_steps(run, loop.restore(run))
        if case["logits"]:
            loop.finish(run, state)
            rows = Prepared.open(job.prepared_root).split("train").read_rows(np.arange(3))
            batch = collate(rows, spec.model.task, run.pad_token_id, gang.device)
            run.engine.module.eval()
            with torch.no_grad():
                logits = model_logits(run.engine.module, batch, spec.model.task)
            if gang.rank == 0:
                np.save(case["logits"], logits.float().numpy())


def main() -> None:
    dist.init_process_group("gloo")
    for case in json.loads(pathlib.Path(sys.argv[1]).read_text()):
        run_case(case)
    dist.barrier()


if __name__ == "__main__":
    main()
