"""Predicted against real peaks of memory: `python -m bench.planning [--quick] [--only llama gpt2] [--workers 8]`.

Real: the engine of a run, in 1, 2 and 8 gloo processes on CPU, makes steps of a small model with random weights;
`allocations.c` counts what PyTorch's allocator hands out. One JSON line a case, and a summary at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from jobs.planning.memory import RESERVE, Memory, ModelTrace, memory_of
from jobs.planning.precision import precision_of
from jobs.planning.strategy import as_traced, strategy_of
from jobs.spec.finetune import Spec
from jobs.spec.load import dump_spec

ROOT = pathlib.Path(__file__).parents[1]
# Adam's states exist after the first step; ZeRO-3 knows the order of the modules from the second on. gloo frees a copy
# late in some steps, if its thread has to wait: twelve nearly always have one of them.
STEPS, QUICK_STEPS = 12, 3
HIDDEN, LAYERS, VOCABULARY, TOKENS = 128, 4, 8_000, 128
# Buckets and limits are as small as the models. They fill up and overflow as often as those of large models do.
ZERO: Final = {
    "reduce_bucket_size": 500_000,
    "prefetch_bucket_size": 250_000,
    "param_persistence_threshold": 500,
    "max_live_parameters": 1_500_000,
    "max_reuse_distance": 250_000,
}
SMALL_BUFFERS: Final = {
    "reduce_bucket_size": 100_000,
    "prefetch_bucket_size": 50_000,
    "max_live_parameters": 100_000,
    "max_reuse_distance": 0,
}
_COMMON: Final = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "vocab_size": VOCABULARY,
    "bos_token_id": 1,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
_GEMMA: Final = {**_COMMON, "intermediate_size": 3 * HIDDEN, "head_dim": 16, "sliding_window": 64}
MODELS: Final[dict[str, dict[str, Any]]] = {
    "llama": {**_COMMON, "intermediate_size": 3 * HIDDEN},
    "gpt2": {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": 8, "n_positions": 512, "vocab_size": VOCABULARY},
    "bert": {**_COMMON, "intermediate_size": 4 * HIDDEN, "num_labels": 3},
    "qwen2": {**_COMMON, "intermediate_size": 3 * HIDDEN, "tie_word_embeddings": True},
    "qwen3": {**_COMMON, "intermediate_size": 3 * HIDDEN, "head_dim": 16},
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "mixtral": {**_COMMON, "intermediate_size": HIDDEN, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {
        **_COMMON, "intermediate_size": HIDDEN, "moe_intermediate_size": 64, "num_experts": 8,
        "num_experts_per_tok": 2, "head_dim": 16,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A model, and how it is sharded and fed."""

    model: str
    workers: int = 1
    stage: int = 3
    checkpointing: bool = False
    bf16: bool = False
    fp16: bool = False
    packing: bool = False
    rows: int = 4
    accumulation: int = 2
    method: str = "full"
    offload: str = ""  # "optimizer", or "both": the parameters too
    small_buffers: bool = False

    def spec(self, model_dir: pathlib.Path) -> Spec:
        classify = self.model == "bert"
        model = {"path": str(model_dir), "task": "sequence-classification" if classify else "causal-lm"}
        fields = {"": (), "optimizer": ("offload_optimizer",), "both": ("offload_optimizer", "offload_param")}
        offloads = dict.fromkeys(fields[self.offload], "cpu")
        buffers = ZERO | (SMALL_BUFFERS if self.small_buffers else {})
        return Spec.model_validate({
            "model": {**model, **({"num_labels": 3} if classify else {})},
            "method": self.method,
            "data": {
                "train": str(model_dir), "format": "classification" if classify else "text", "seq_len": TOKENS,
                "packing": self.packing,
            },
            "train": {
                "max_steps": 3, "per_device_train_batch_size": self.rows, "bf16": self.bf16, "fp16": self.fp16,
                "gradient_accumulation_steps": self.accumulation, "gradient_checkpointing": self.checkpointing,
                "zero": {"stage": self.stage, **buffers, **offloads},
            },
            "resources": {"num_workers": self.workers, "gpus_per_worker": int(self.fp16)},
            "storage_path": str(model_dir.parent),
        })  # fmt: skip


def cases(models: Sequence[str]) -> list[Case]:
    """Every model with and without checkpointing on 1, 2 and 8 workers; Llama and GPT-2 with everything else too."""
    found = [
        Case(model, workers, checkpointing=again, rows=1 if workers == 8 else 4)
        for model in models
        for workers in (1, 2, 8)
        for again in (False, True)
    ]
    for model in [name for name in models if name in ("llama", "gpt2")]:
        found += [
            Case(model, workers, stage, bf16=bf16)
            for stage in (1, 2, 3)
            for workers in (1, 2)
            for bf16 in (False, True)
        ]
        found += [Case(model, 2, stage, accumulation=1) for stage in (1, 2, 3)]
        found += [Case(model, 8, stage, rows=1) for stage in (1, 2, 3)]
        found += [Case(model, workers, rows=1) for workers in (2, 4)]
        found += [Case(model, workers, 1, bf16=True, rows=1) for workers in (1, 2)]
        found += [Case(model, workers, 1, fp16=True) for workers in (1, 2)]
        found += [Case(model, workers, 1, bf16=True, offload="optimizer") for workers in (1, 2)]
        found += [Case(model, 2, 3, packing=True)]
        found += [Case(model, 2, 2, fp16=True, offload="optimizer")]
        found += [
            Case(model, workers, stage, bf16=bf16, offload=offload)
            for stage, offload in ((2, "optimizer"), (3, "optimizer"), (3, "both"))
            for workers in (1, 2)
            for bf16 in (False, True)
        ]
        found += [
            Case(model, workers, bf16=bf16, rows=1, checkpointing=again, small_buffers=True)
            for workers in (1, 2)
            for bf16 in (False, True)
            for again in (False, True)
        ]
        found += [
            Case(model, workers, stage, method=method, checkpointing=again)
            for stage in (2, 3)
            for method in ("lora", "prompt")
            for workers in (1, 2)
            for again in (False, True)
        ]
    return list(dict.fromkeys(found))


def quick_cases() -> list[Case]:
    """A minute of cases: both kinds of peaks, every stage, on 1 and 2 workers."""
    return [
        Case("llama"),
        Case("gpt2", 2),
        Case("llama", 2, checkpointing=True),
        Case("gpt2", 1, 2),
        Case("llama", 2, 1, bf16=True, rows=1),  # some CPUs multiply bf16 slowly
        Case("llama", 2, 2),
        Case("llama", 2, method="lora"),
        Case("llama", 2, 2, method="lora"),
        Case("llama", 2, method="prompt"),
        Case("llama", 2, rows=1),
        Case("llama", 1, bf16=True, rows=1, offload="optimizer"),
        Case("mixtral", 2),
    ]


def predicted(spec: Spec, traces: dict[Any, ModelTrace]) -> Memory:
    """Return the predicted peak. `traces` keeps the traces of earlier cases, which other workers share."""
    from jobs.preflight.model_trace import trace_model

    precision = precision_of(spec.train, device_has_bf16=False)
    traced = as_traced(spec, json.loads(pathlib.Path(spec.model.path, "config.json").read_bytes()))
    again, stage = spec.train.gradient_checkpointing, traced.train.zero.stage
    key = (spec.model.path, precision, again, spec.packed, spec.method.kind, stage)
    if key not in traces:
        traces[key] = trace_model(traced, spec.model.path, precision)
    trace = traces[key]
    memory = memory_of(trace, strategy_of(spec), spec.resources.num_workers, "cpu")
    if spec.train.zero.stage == 3:
        return memory
    # Frozen weights stay in the mapped file, which `allocations.c` does not count.
    counted = replace(memory, parameters=memory.parameters - trace.element_bytes * (trace.parameters - trace.trained))
    return replace(counted, reserve=int(RESERVE * counted.used))


def real(specs: Sequence[Spec], folder: pathlib.Path, steps: int) -> Iterator[list[dict[str, Any]]]:
    """Yield what the ranks of each case measured."""
    library = folder / "allocations.so"
    source = pathlib.Path(__file__).with_name("allocations.c")
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", library, source, "-ldl", "-lpthread"], check=True)
    files = []
    for number, spec in enumerate(specs):
        files.append(folder / f"spec-{number}.json")
        files[-1].write_bytes(dump_spec(spec))
    environment = {**os.environ, "LD_PRELOAD": str(library), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "bench.realpeak", str(steps), *map(str, files)]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        yield from (json.loads(line)["ranks"] for line in process.stdout)


def save_models(names: set[str], folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Write small models with random weights."""
    import torch
    import transformers

    torch.manual_seed(0)
    found = {}
    for name in sorted(names):
        config = transformers.AutoConfig.for_model(name, **MODELS[name])
        kind = transformers.AutoModelForSequenceClassification if name == "bert" else transformers.AutoModelForCausalLM
        found[name] = folder / name
        kind.from_config(config).save_pretrained(found[name])
    return found


def compare(wanted: Sequence[Case], steps: int = STEPS) -> Iterator[dict[str, Any]]:
    """Yield one record a case: the predicted and the real peak, in bytes, and the relative error."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        models = save_models({case.model for case in wanted}, folder)
        specs = [case.spec(models[case.model]) for case in wanted]
        traces: dict[Any, ModelTrace] = {}
        for case, spec, ranks in zip(wanted, specs, real(specs, folder, steps), strict=True):
            errors = [rank["error"] for rank in ranks if "error" in rank]
            if errors:
                yield {**asdict(case), "failed": errors[0]}
                continue
            plan, peak = predicted(spec, traces), max(rank["peak"] for rank in ranks)
            yield {
                **asdict(case), "predicted": plan.used, "reserve": plan.reserve, "real": peak,
                "error": round(plan.used / peak - 1, 4), "parts": asdict(plan), "steps": ranks[0]["moments"],
            }  # fmt: skip


def summary(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the median and the worst relative error, and how far the total with its reserve is ever under the peak."""
    found = [record for record in records if "error" in record]
    errors = [abs(record["error"]) for record in found]
    return {
        "cases": len(records),
        "failed": len(records) - len(found),
        "median_error": round(statistics.median(errors), 4),
        "worst_error": max(errors),
        "worst_case": {key: value for key, value in max(found, key=lambda one: abs(one["error"])).items()
                       if key not in ("parts", "steps")},
        "most_under": min(record["error"] for record in found),
        "under_with_reserve": sum(record["predicted"] + record["reserve"] < record["real"] for record in found),
    }  # fmt: skip


def main() -> None:
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed would look for one, and say on stdout what it found
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="twelve cases of three steps, a minute")
    parser.add_argument("--only", nargs="+", choices=MODELS, default=list(MODELS), help="models")
    parser.add_argument("--workers", type=int, nargs="+", choices=(1, 2, 4, 8), help="only cases with these numbers")
    parser.add_argument("--offload", action="store_true", help="only cases with offload")
    parser.add_argument("--small-buffers", action="store_true", help="only cases with small buffers")
    given = parser.parse_args()
    wanted = [
        case
        for case in (quick_cases() if given.quick else cases(given.only))
        if (not given.workers or case.workers in given.workers)
        and (case.offload or not given.offload)
        and (case.small_buffers or not given.small_buffers)
    ]
    records = []
    for record in compare(wanted, QUICK_STEPS if given.quick else STEPS):
        records.append(record)
        print(json.dumps(record), flush=True)
    print(json.dumps({"summary": summary(records)}))


if __name__ == "__main__":
    main()
