"""Compare full fine-tuning with LoRA and prompt tuning: `python -m bench.comparison TASK --out FOLDER`.

`reviews` classifies film reviews with MiniLM, with LoRA of two ranks. `dialogues` tunes SmolLM2-135M on short
dialogues, one in each row, with LoRA and a prompt, and measures its loss on general text.

It runs `fleetune run` with a spec of kind compare on one CPU worker; a second call goes on where the first was
interrupted. Then it looks into the exported weights: how many directions of each matrix full fine-tuning has changed,
and how many LoRA has. Last, it counts the floating-point operations of a training step of each method.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from bench import forgetting, methods, models
from jobs.comparison.measured import read_comparison
from jobs.comparison.page import comparison_text
from jobs.run.paths import JobPaths

Array = Any
RANKS: Final = (4, 16)
ALPHA: Final = 32.0
LAYER: Final = re.compile(r"\.layers?\.")
_ENERGY: Final = 0.9


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--steps", type=int, help="default: 48 for reviews, 40 for dialogues")
    parser.add_argument("--runs", type=float, default=3.2, help="budget of each method's search")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of the comparison")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    task = TASKS[options.task](options.out, options.steps)
    root = compared(options.out, task, options.runs, options.seeds)
    found = read_comparison(JobPaths(str(root)))
    assert found is not None
    print(comparison_text(found), end="\n\n")
    base = tensors(task.model / "model.safetensors")
    for one in found.methods:
        (model,) = pathlib.Path(one.sweep).glob("*/model")
        if one.method != "prompt":
            print(rank_words(one.name, lora_changes(model) if one.method == "lora" else full_changes(model, base)))
    counts = {method["name"]: flops(task, method) for method in task.methods if method["method"] != "prompt"}
    for name, count in counts.items():
        print(f"{name}: {count / 1e9:.2f} GFLOP a step, {count / counts['full']:.3f} of full fine-tuning")
    return 0


@dataclass(frozen=True)
class Task:
    """What is compared: the spec of the job, and the methods.

    Attributes:
        tokens: length of a row, for the count of operations.
    """

    model: pathlib.Path
    base: dict[str, Any]
    methods: Sequence[dict[str, Any]]
    tokens: int

    @property
    def rows(self) -> int:
        return int(self.base["train"]["global_batch_size"])


def reviews(folder: pathlib.Path, steps: int | None) -> Task:
    base = methods.spec_of(steps or 48)
    base["data"] |= {"train": str(models.reviews(4000)), "seq_len": 64}
    base["train"] = {"max_steps": steps or 48, "global_batch_size": 16, "per_device_train_batch_size": 16}
    base["resources"]["num_workers"] = 1
    del base["eval"]["eval_on_start"]
    return Task(models.minilm(), base, [FULL, *(lora(f"lora-r{rank}", rank) for rank in RANKS)], 64)


def dialogues(folder: pathlib.Path, steps: int | None) -> Task:
    forgetting.write_texts(folder)
    base = {
        "model": {"path": str(models.smollm2()), "task": "causal-lm"},
        "data": {
            "train": str(folder / "train.jsonl"),
            "eval": str(folder / "held-out.jsonl"),
            "format": "chat",
            "seq_len": 128,
            "packing": False,  # rows with a prompt are not packed, and all methods see the same rows
        },
        "train": {"max_steps": steps or 40, "global_batch_size": 8, "per_device_train_batch_size": 8},
        "eval": {"general": str(folder / "probe.jsonl")},
        "resources": {"num_workers": 1, "gpus_per_worker": 0},
    }
    prompt = {"name": "prompt", "method": "prompt", "prompt": {"num_virtual_tokens": 20}}
    return Task(models.smollm2(), base, [FULL, lora("lora", RANKS[-1]), prompt], 32)


def lora(name: str, rank: int) -> dict[str, Any]:
    return {"name": name, "method": "lora", "lora": {"rank": rank, "alpha": ALPHA}}


FULL: Final = {"name": "full", "method": "full"}
TASKS: Final[dict[str, Callable[[pathlib.Path, int | None], Task]]] = {"reviews": reviews, "dialogues": dialogues}


def compared(folder: pathlib.Path, task: Task, runs: float, seeds: int) -> pathlib.Path:
    """Run the comparison, or go on with it, and return its root."""
    spec = {"kind": "compare", "methods": task.methods, "budget": {"runs": runs}, "seeds": seeds, "num_gangs": 1}
    (folder / "compare.json").write_text(json.dumps(spec | {"base": {**task.base, "storage_path": "runs"}}, indent=1))
    begun = sorted((folder / "runs").glob("compare-*"))
    given = ["--resume", str(begun[-1])] if begun else [str(folder / "compare.json")]
    environment = {**os.environ, "PYTHONPATH": str(methods.ROOT)}
    subprocess.run([sys.executable, "-m", "orchestrator", "run", *given], env=environment, check=True)
    return sorted((folder / "runs").glob("compare-*"))[-1]


def tensors(path: pathlib.Path) -> dict[str, Array]:
    from safetensors.numpy import load_file

    found: dict[str, Array] = load_file(path)
    return found


def full_changes(model: pathlib.Path, base: Mapping[str, Array]) -> list[Array]:
    """Return the singular values of the change of each matrix in the layers."""
    found = []
    for name, weights in tensors(model / "model.safetensors").items():
        before = base.get(name, base.get(name.partition(".")[2]))
        if before is not None and weights.ndim == 2 and LAYER.search(name):
            found.append(np.linalg.svd(weights - before, compute_uv=False))
    return found


def lora_changes(model: pathlib.Path) -> list[Array]:
    """Return the singular values of the product of each pair of factors."""
    config = json.loads((model / "adapter_config.json").read_text())
    factors, found = tensors(model / "adapter_model.safetensors"), []
    for name, a in factors.items():
        if "lora_A" in name:
            b = factors[name.replace("lora_A", "lora_B")]
            found.append(np.linalg.svd(b @ a * (config["lora_alpha"] / config["r"]), compute_uv=False))
    return found


def rank_words(name: str, changes: list[Array]) -> str:
    """State the medians over the matrices: the share of the energy in few directions, and directions for most of it."""
    energies = [values**2 / (values**2).sum() for values in changes]
    shares = ", ".join(f"{np.median([one[:rank].sum() for one in energies]):.1%} in the top {rank}" for rank in RANKS)
    needed = [int(np.searchsorted(np.cumsum(one), _ENERGY)) + 1 for one in energies]
    size = np.median([np.sqrt((values**2).sum()) for values in changes])
    return (
        f"{name}: {len(changes)} matrices; energy of the change: {shares}; {_ENERGY:.0%} in {np.median(needed):.0f} "
        f"directions ({min(needed)} to {max(needed)}); Frobenius norm {size:.3f}"
    )


def flops(task: Task, method: Mapping[str, Any]) -> int:
    """Count the matrix products of a forward and a backward pass."""
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model
    from torch.utils.flop_counter import FlopCounterMode

    classifies = task.base["model"]["task"] == "sequence-classification"
    kind = transformers.AutoModelForSequenceClassification if classifies else transformers.AutoModelForCausalLM
    model = kind.from_pretrained(task.model)
    if method["method"] == "lora":
        heads = ["classifier"] if classifies else None
        settings = LoraConfig(r=method["lora"]["rank"], target_modules="all-linear", modules_to_save=heads)
        model = get_peft_model(model, settings)
    batch = {name: torch.ones(task.rows, task.tokens, dtype=torch.long) for name in ("input_ids", "attention_mask")}
    with FlopCounterMode(display=False) as counter:
        model(**batch).logits.sum().backward()
    return int(counter.get_total_flops())


if __name__ == "__main__":
    sys.exit(main())
