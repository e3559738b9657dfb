"""Measures on GPUs what CPUs can only predict or simulate: `python -m bench.gpus [--workers 1] [--only NAME ...]`.

Each case is a run under torchrun, from the preparation of data to the verified export. Some compare predicted and
measured memory and time, for every stage of ZeRO, precision and kind of offload. One compares a resumed run with a run
in one go. Two cause real errors of CUDA. Each case prints one JSON line to stdout. The exit code is 1 if a case did not
end as it should. `--cpu` runs the cases with a tiny model and gloo. Ray is not needed.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from bench.failures.planting import Plant, as_variable
from bench.results import other_output_to_stderr, tell
from jobs.run.outcome import Outcome, Status, read_outcome
from jobs.run.paths import JobPaths
from jobs.run.record import read_steps
from tests.support import tiny

ROOT: Final = pathlib.Path(__file__).parents[1]
PLANTED: Final = ROOT / "bench/failures/planted"
WITHIN_S: Final = 540.0
STEPS: Final = 12
FAILS_AT: Final = STEPS // 2 + 1
# Of the same batch, computed by the same kernels: some of them add in another order each time.
TOLERANCE: Final = {"gpu": 1e-4, "cpu": 1e-6}


@dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
        changes: of the spec, by dotted name.
        plants: what fails in the processes of the run.
        says: part of the reason that the outcome gives; empty: the run succeeds.
        out_of_memory: what the outcome says of the failure.
        resumed: the run is resumed without the plants, and compared with this case, which ran in one go.
        needs_gpu: there is no such case on CPUs.
    """

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    plants: tuple[Plant, ...] = ()
    says: str = ""
    out_of_memory: bool = False
    resumed: str = ""
    needs_gpu: bool = False


def _fails(what: str) -> tuple[Plant, ...]:
    return (Plant("step", what, rank=0, steps=(FAILS_AT,)),)


BATCH: Final = ("train.per_device_train_batch_size", "train.gradient_accumulation_steps")
OFFLOAD: Final = {"train.zero.offload_optimizer": "cpu"}
CASES: Final = (
    Case("zero 1", {"train.zero.stage": 1}),
    Case("zero 2", {"train.zero.stage": 2}),
    Case("zero 3", {"train.zero.stage": 3}),
    Case("zero 3, resumed", {"train.zero.stage": 3}, _fails("bug"), says="KeyError", resumed="zero 3"),
    Case("zero 3, fp32", {"train.zero.stage": 3, "train.bf16": False}),
    Case("zero 3, fp16", {"train.zero.stage": 3, "train.bf16": False, "train.fp16": True}, needs_gpu=True),
    Case("zero 3, checkpointing", {"train.zero.stage": 3, "train.gradient_checkpointing": True}),
    Case("zero 2, optimizer offloaded", {"train.zero.stage": 2, **OFFLOAD}),
    Case("zero 3, both offloaded", {"train.zero.stage": 3, **OFFLOAD, "train.zero.offload_param": "cpu"}),
    Case("lora", {"train.zero.stage": 2, "method": "lora"}),
    Case("chosen by the plan", {**dict.fromkeys(BATCH), "train.global_batch_size": 16}),
    Case("real lack of memory", plants=_fails("take memory"), says="out of", out_of_memory=True, needs_gpu=True),
    Case("real device-side assert", plants=_fails("index"), says="CUDA error", needs_gpu=True),
)


@dataclass(frozen=True)
class Size:
    """The model, a Llama with random weights, and its rows."""

    hidden: int
    layers: int
    vocabulary: int
    seq_len: int


SIZES: Final = {"gpu": Size(2048, 16, 128_256, 2048), "cpu": Size(32, 2, 512, 64)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, help="GPUs, or processes with --cpu; by default 1, or 2 with --cpu")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[case.name for case in CASES])
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()
    kind = "cpu" if options.cpu else "gpu"
    if options.cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns that it found no GPU
    workers = options.workers or (2 if options.cpu else 1)
    wanted = [case for case in CASES if not (options.only and case.name not in options.only)]
    with tempfile.TemporaryDirectory(prefix="fleetune-gpus-") as name, other_output_to_stderr():
        bench = Bench(pathlib.Path(name), kind, workers)
        right = [bench.tell(case) for case in wanted if kind == "gpu" or not case.needs_gpu]
    print(f"{sum(right)} of {len(right)} cases ended as they should", file=sys.stderr)
    return 0 if all(right) else 1


class Bench:
    """The model, the text and the runs of one call, in a folder."""

    def __init__(self, folder: pathlib.Path, kind: str, workers: int) -> None:
        self.folder, self.kind, self.workers = folder, kind, workers
        self.size = SIZES[kind]
        self.model = save_llama(folder / "model", self.size)
        self.text = tiny.write_text(folder / "text.jsonl", 4_000 if kind == "cpu" else 60_000)
        self.losses: dict[str, list[float]] = {}  # of the runs in one go, by case

    def tell(self, case: Case) -> bool:
        """Run a case, print its line, and return whether it ended as it should."""
        found = self.run(case)
        tell({"case": case.name, "workers": self.workers, **found})
        return bool(found["right"])

    def run(self, case: Case) -> dict[str, Any]:
        place = self.folder / case.name.replace(" ", "-").replace(",", "")
        place.mkdir()
        file = place / "job.json"
        file.write_text(json.dumps(self.spec(case, place / "runs")))
        code = self.launch([str(file)], case.plants, place)
        paths = self.paths_in(place / "runs")
        outcome = None if paths is None else read_outcome(paths)
        if paths is None or outcome is None:
            return {"right": False, "exit_code": code, "why": "the run left no outcome; see the lines above"}
        if case.says:
            found = failure_of(case, outcome, code)
            if not case.resumed or not found["right"]:
                return found
            code = self.launch(["--resume", paths.root], (), place)
            outcome = read_outcome(paths)
            assert outcome is not None
        found = {"exit_code": code, "right": code == 0 and outcome.status is Status.SUCCEEDED, "why": outcome.reason}
        steps = read_steps(paths)
        losses = [float(step["loss"]) for step in steps]
        if case.resumed in self.losses:
            apart = max(abs(one - other) / other for one, other in zip(losses, self.losses[case.resumed], strict=True))
            return found | {"apart": apart, "right": found["right"] and apart <= TOLERANCE[self.kind]}
        self.losses[case.name] = losses
        return found | figures_of(outcome) | {"tokens_per_s": round(steps[-1]["tokens_per_s"])}

    def spec(self, case: Case, runs: pathlib.Path) -> dict[str, Any]:
        raw = {
            "name": "gpus",
            "model": {"path": str(self.model), "task": "causal-lm"},
            "data": {"train": str(self.text), "format": "text", "seq_len": self.size.seq_len, "packing": True},
            "train": {
                "max_steps": STEPS,
                "bf16": self.kind == "gpu",
                "per_device_train_batch_size": 2,
                "gradient_accumulation_steps": 2,
            },
            "checkpoint": {"save_steps": STEPS // 2},
            "resources": {"num_workers": self.workers, "gpus_per_worker": int(self.kind == "gpu")},
            "storage_path": str(runs),
        }
        return {name: given(value) for name, value in tiny.changed(raw, dict(case.changes)).items()}

    def launch(self, arguments: list[str], plants: tuple[Plant, ...], place: pathlib.Path) -> int:
        """Run torchrun, with its output on stderr, and return the exit code; -1 if it did not end."""
        path = [str(ROOT), *(os.environ[name] for name in ("PYTHONPATH",) if name in os.environ)]
        environment = {**os.environ, "OMP_NUM_THREADS": "4" if self.kind == "gpu" else "1"}
        if plants:
            environment["PLANTED"] = as_variable(plants, place)
            path.insert(0, str(PLANTED))
        environment["PYTHONPATH"] = os.pathsep.join(path)
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={self.workers}"]
        command = [*torchrun, "-m", "jobs.finetune", *arguments]
        try:
            return subprocess.run(command, env=environment, stdout=sys.stderr, timeout=WITHIN_S).returncode
        except subprocess.TimeoutExpired:
            return -1

    def paths_in(self, runs: pathlib.Path) -> JobPaths | None:
        return next((JobPaths(str(path.parent)) for path in runs.glob("*/spec.json")), None)


def given(raw: Any) -> Any:
    """Return the spec without the fields that a case sets to None, which are then left out."""
    if not isinstance(raw, dict):
        return raw
    return {name: given(value) for name, value in raw.items() if value is not None}


def failure_of(case: Case, outcome: Outcome, code: int) -> dict[str, Any]:
    reason = outcome.reason or ""
    expected = case.says in reason and outcome.out_of_memory == case.out_of_memory and not outcome.lost
    right = expected and code == 1 and outcome.step == FAILS_AT - 1
    return {"exit_code": code, "right": right, "why": reason, "out_of_memory": outcome.out_of_memory}


def figures_of(outcome: Outcome) -> dict[str, Any]:
    """Return predicted and measured peaks (GiB of a worker) and times (seconds of a step)."""
    plan = outcome.plan
    if plan is None:
        return {"plan": None}
    return {
        "machines": plan.machines,
        "predicted_gib": _rounded(plan.predicted_bytes / 2**30),
        "measured_gib": _rounded(plan.measured_bytes and plan.measured_bytes / 2**30),
        "predicted_step_s": _rounded(plan.predicted_step_s),
        "first_steps_s": _rounded(plan.first_steps_s),
        "measured_step_s": _rounded(plan.measured_step_s),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def save_llama(folder: pathlib.Path, size: Size) -> pathlib.Path:
    """Save a Llama of this size with random weights, with the small tokenizer of the tests."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=size.hidden,
        intermediate_size=size.hidden * 4,
        num_hidden_layers=size.layers,
        num_attention_heads=max(4, size.hidden // 64),
        num_key_value_heads=max(2, size.hidden // 256),
        max_position_embeddings=2 * size.seq_len,
        vocab_size=size.vocabulary,
        bos_token_id=1,
        eos_token_id=0,
        dtype=torch.bfloat16 if size.hidden > 1024 else torch.float32,
    )
    transformers.LlamaForCausalLM(config).to(config.dtype).save_pretrained(folder)
    tiny.save_tokenizer(folder)
    return folder


if __name__ == "__main__":
    sys.exit(main())
