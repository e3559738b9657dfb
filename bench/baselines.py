"""The same rows and the same model under stock loops: plain DeepSpeed ZeRO-3, and the Hugging Face Trainer with it.

    torchrun --standalone --nproc_per_node 2 bench/baselines.py deepspeed|trainer SPEC PREPARED METRICS

Rank 0 writes `step, tokens, step_time_s` of every step to the folder METRICS, in the form of a run's metrics.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from typing import Any

os.environ["DS_ACCELERATOR"] = "cpu"  # before DeepSpeed is imported

import deepspeed
import torch
import torch.distributed as dist
import transformers

from jobs.data.order.row_order import micro_batches
from jobs.data.order.stream import step_plan
from jobs.data.prepared import Prepared
from jobs.planning import plan_batching
from jobs.spec.finetune import Spec
from jobs.spec.load import load_spec
from jobs.storage.journal import JournalWriter
from jobs.training.model.load import attention_arguments

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # would be compiled for half a minute, for nothing


class Rows:
    """The prepared rows in the order of training; [step] gives the micro-batches of all workers."""

    def __init__(self, spec: Spec, prepared_root: str) -> None:
        prepared = Prepared.open(prepared_root)
        self.split, self.pad = prepared.split("train"), prepared.manifest.pad_token_id
        self.plan, self.batching = step_plan(spec, self.split), plan_batching(spec)

    def micros(self, step: int) -> list[list[dict[str, Any]]]:
        """[worker] -> rows, for one forward pass a step."""
        shape = self.batching
        dealt = micro_batches(self.plan.rows_of_step(step), shape.per_device, shape.accumulation, shape.num_workers)
        return [self.split.read_rows(pieces[0]).to_pylist() for pieces in dealt]

    def tokens(self, step: int) -> int:
        return int(self.split.index.num_tokens[self.plan.rows_of_step(step)].sum())

    def batch(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Padded to the longest row; packed samples are told apart by their positions."""
        width = max(len(row["input_ids"]) for row in rows)
        out: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "position_ids": []}
        for row in rows:
            missing = width - len(row["input_ids"])
            out["input_ids"].append(row["input_ids"] + [self.pad] * missing)
            out["labels"].append(row["labels"] + [-100] * missing)
            positions = [place for length in row["lengths"] for place in range(length)]
            out["position_ids"].append(positions + list(range(missing)))
        return {name: torch.tensor(value) for name, value in out.items()}


class StepTimes:
    """Rank 0's metrics: the time from the end of one step to the end of the next."""

    def __init__(self, folder: str, rank: int, rows: Rows) -> None:
        self._journal = JournalWriter(folder) if rank == 0 else None
        self._rows, self._ended = rows, time.perf_counter()

    def step(self, step: int) -> None:
        """Step `step`, counted from 0, has ended."""
        now = time.perf_counter()
        if self._journal is not None:
            record = {"step": step + 1, "tokens": self._rows.tokens(step), "step_time_s": now - self._ended}
            self._journal.append(record)
        self._ended = now

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()


def run_deepspeed(spec: Spec, rows: Rows, metrics: str) -> None:
    """The loop of DeepSpeed's own tutorial, with DeepSpeed's defaults."""
    deepspeed.init_distributed("gloo")
    rank, train = dist.get_rank(), spec.train
    config = {
        "train_micro_batch_size_per_gpu": train.per_device_train_batch_size,
        "gradient_clipping": train.max_grad_norm,
        "optimizer": {"type": "AdamW", "params": {"lr": train.learning_rate, "torch_adam": True}},
        "zero_optimization": {"stage": 3},
    }
    model = load(spec)
    engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=config)
    times = StepTimes(metrics, rank, rows)
    for step in range(rows.plan.total_steps):
        loss = engine(**rows.batch(rows.micros(step)[rank]), use_cache=False).loss
        engine.backward(loss)
        engine.step()
        loss.item()  # people print it
        times.step(step)
    times.close()


def run_trainer(spec: Spec, rows: Rows, metrics: str) -> None:
    """The Trainer with the ZeRO-3 configuration of its documentation."""
    train = spec.train
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "train_batch_size": "auto",
        "gradient_clipping": "auto",
        "optimizer": {"type": "AdamW", "params": {"lr": "auto", "weight_decay": "auto", "torch_adam": True}},
        "zero_optimization": {
            "stage": 3,
            "overlap_comm": True,
            "contiguous_gradients": True,
            "reduce_bucket_size": "auto",
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
        },
    }
    ordered = [row for step in range(rows.plan.total_steps) for rows_of_one in rows.micros(step) for row in rows_of_one]
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            use_cpu=True,
            deepspeed=config,
            per_device_train_batch_size=train.per_device_train_batch_size,
            max_steps=rows.plan.total_steps,
            learning_rate=train.learning_rate,
            max_grad_norm=train.max_grad_norm,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            train_sampling_strategy="sequential",
        )
        deepspeed.init_distributed("gloo")  # after TrainingArguments: on CPUs they leave it undone
        times = StepTimes(metrics, dist.get_rank(), rows)

        class Timer(transformers.TrainerCallback):  # type: ignore[misc]  # transformers is not followed
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                times.step(state.global_step - 1)

        model = load(spec)
        transformers.Trainer(
            model, arguments, train_dataset=ordered, data_collator=rows.batch, callbacks=[Timer()]
        ).train()
        times.close()


def load(spec: Spec) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(
        spec.model.path, dtype=torch.float32, **attention_arguments(spec)
    )


if __name__ == "__main__":
    loop, spec_file, prepared_root, metrics_folder = sys.argv[1:]
    bench_spec = load_spec(spec_file)
    loops = {"deepspeed": run_deepspeed, "trainer": run_trainer}
    loops[loop](bench_spec, Rows(bench_spec, prepared_root), metrics_folder)
    dist.barrier()  # a rank that is late aborts where rank 0, which keeps the store, is gone
    dist.destroy_process_group()
