"""How long a save holds up the step loop: ours behind the loop, beside DeepSpeed's save_checkpoint with a SYNC report.

    python -m bench.checkpoint [--rounds 3] [--after 8] [--layers 30] [--work DIR]

One gang of Ray Train trains on and saves in turns, each way once a round. What a save costs is the time inside the
call, and what the steps after it take longer than the median step before it, until the write is over (at least
`--after` steps). Lines for people go to stderr, one JSON object for each save to stdout, the summary last.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import sys
import tempfile
import time
from typing import Any

WORKERS = 2
TOKENS = 64
QUIET_STEPS = 6  # before each save: what a step takes when nothing is written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--after", type=int, default=8, help="steps after a save that are counted, at least")
    parser.add_argument("--layers", type=int, default=30, help="of a model with the sizes of SmolLM2-135M")
    parser.add_argument("--work", help="folder for scratch files; the system's own if left out")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fleetune-bench-", dir=options.work) as folder:
        results = measure(pathlib.Path(folder), options)
    for result in results:
        print(json.dumps(result), flush=True)
    print(json.dumps(summary(results)), flush=True)


def measure(folder: pathlib.Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from cluster.ray.connection import QUIET_LOCAL_RAY
    from cluster.settings import set_default

    for name, value in {**QUIET_LOCAL_RAY, "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}.items():
        set_default(name, value)
    model = make_model(folder / "model", options.layers)
    ray.init(num_cpus=WORKERS + 2, include_dashboard=False, log_to_driver=False)
    trainer = TorchTrainer(
        loop,
        train_loop_config={
            "root": str(folder / "run"), "model": str(model), "rounds": options.rounds, "after": options.after,
        },
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=WORKERS, resources_per_worker={"CPU": 1.0}),
        run_config=RunConfig(
            name="ray", storage_path=str(folder), worker_runtime_env={"env_vars": {"MALLOC_ARENA_MAX": "1"}}
        ),
    )  # fmt: skip
    found: list[dict[str, Any]] = trainer.fit().return_value
    ray.shutdown()
    return found


def make_model(folder: pathlib.Path, layers: int) -> pathlib.Path:
    """Random weights in the sizes of SmolLM2-135M: a save does not look at values."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def loop(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The function of every worker; what rank 0 returns counts."""
    saver = Saver(config)
    for _ in range(3):
        saver.step()
    results = []
    for number in range(1, 2 * config["rounds"] + 1):
        results.append(saver.measured("fleetune" if number % 2 else "deepspeed+report", number, config["after"]))
        print(results[-1], file=sys.stderr)
    return results


class Saver:
    """One worker's engine, and both ways to save it."""

    def __init__(self, config: dict[str, Any]) -> None:
        import torch

        from jobs.run.paths import JobPaths
        from jobs.spec.finetune import Spec
        from jobs.training.checkpoint.host_copy import HostCopy
        from jobs.training.checkpoint.writer import Checkpointer
        from jobs.training.model.engine import build_engine
        from jobs.training.reporter import Reporter
        from jobs.training.worker_context import RayWorkerContext

        torch.set_num_threads(1)
        paths = JobPaths(config["root"])
        spec = Spec.model_validate(
            {
                "model": {"path": config["model"], "task": "causal-lm"},
                "data": {"train": "none", "format": "text", "seq_len": TOKENS},
                "train": {"bf16": False, "learning_rate": 1e-5},
                "resources": {"num_workers": WORKERS, "gpus_per_worker": 0},
            }
        )
        worker = RayWorkerContext(paths, 0)
        self.engine = build_engine(spec, config["model"], worker, 0)
        partitions = self.engine.partitions
        self.checkpoints = Checkpointer(
            paths, partitions, HostCopy(partitions), worker, 1, Reporter(paths, worker.rank)
        )
        self.scratch = pathlib.Path(config["root"]).parent
        self.state_mb = 3 * 4 * sum(flat.numel() for flat in partitions.flats) * WORKERS / 1e6
        self.tokens = torch.randint(0, 49152, (1, TOKENS), generator=torch.Generator().manual_seed(worker.rank))
        self.ways = {"fleetune": self.fleetune, "deepspeed+report": self.deepspeed}

    def step(self) -> float:
        """Seconds of one training step of all workers."""
        import torch.distributed as dist

        began = time.perf_counter()
        self.engine.backward(self.engine.module(input_ids=self.tokens, labels=self.tokens, use_cache=False).loss)
        self.engine.step()
        dist.barrier()
        return time.perf_counter() - began

    def fleetune(self, number: int) -> None:
        fields = {
            "per_device_train_batch_size": 1, "precision": "fp32", "loss": 0.0, "metrics": {}, "metrics_before": {},
            "chain": "0" * 16, "data_fingerprint": "none",
        }  # fmt: skip
        self.checkpoints.save(number, fields, self.engine.buffers)

    def deepspeed(self, number: int) -> None:
        import ray.train

        with tempfile.TemporaryDirectory(dir=self.scratch) as scratch:
            self.engine.module.save_checkpoint(scratch, tag="state", save_latest=False)
            ray.train.report({"step": number}, checkpoint=ray.train.Checkpoint.from_directory(scratch))

    def writing(self) -> bool:
        """Whether any worker is still writing."""
        import torch
        import torch.distributed as dist

        busy = torch.tensor(float(self.checkpoints.busy))
        dist.all_reduce(busy)
        return bool(busy > 0)

    def measured(self, way: str, number: int, after: int) -> dict[str, Any]:
        """One save, with the steps before and after it."""
        import torch.distributed as dist

        quiet = statistics.median([self.step() for _ in range(QUIET_STEPS)])
        dist.barrier()
        began = time.perf_counter()
        self.ways[way](number)
        dist.barrier()
        call_s = time.perf_counter() - began
        later = [self.step() for _ in range(after)]
        while self.writing() and len(later) < 200:
            later.append(self.step())
        watched_s = time.perf_counter() - began
        assert self.checkpoints.settle(), "a checkpoint could not be written"
        slower_s = sum(later) - quiet * len(later)
        return {
            "result": "save", "way": way, "quiet_step_s": quiet, "call_s": call_s, "later_steps": len(later),
            "slower_steps_s": slower_s, "blocked_s": call_s + slower_s, "watched_s": watched_s,
            "state_mb": self.state_mb,
        }  # fmt: skip


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of both ways, and their ratio."""
    medians = {
        way: statistics.median(one["blocked_s"] for one in results if one["way"] == way)
        for way in ("fleetune", "deepspeed+report")
    }
    return {
        "result": "summary",
        "blocked_s": medians,
        "ratio": medians["fleetune"] / medians["deepspeed+report"],
        "target": 0.1,
        "state_mb": results[0]["state_mb"],
    }


if __name__ == "__main__":
    main()
