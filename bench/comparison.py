"""Compare full fine-tuning with LoRA of two ranks on film reviews: `python -m bench.comparison --out FOLDER`.

It runs `fleetune run` with a spec of kind compare on MiniLM, on CPU workers; a second call goes on where the first was
interrupted. Then it looks into the exported weights: how many directions of each matrix full fine-tuning has changed,
and how many LoRA has. Last, it counts the floating-point operations of a training step of each method.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from bench import methods, models
from jobs.comparison.measured import read_comparison
from jobs.comparison.page import comparison_text
from jobs.run.paths import JobPaths

Array = Any
RANKS: Final = (4, 16)
ALPHA: Final = 32.0
_ENERGY: Final = 0.9


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reviews", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of the comparison")
    options = parser.parse_args()
    root = compared(options.out, options.reviews, options.steps, options.seeds)
    found = read_comparison(JobPaths(str(root)))
    assert found is not None
    print(comparison_text(found), end="\n\n")
    base = tensors(models.minilm() / "model.safetensors")
    for one in found.methods:
        (model,) = pathlib.Path(one.sweep).glob("*/model")
        changes = lora_changes(model) if one.method == "lora" else full_changes(model, base)
        print(rank_words(one.name, changes))
    counts = {"full": flops(None), **{f"lora-r{rank}": flops(rank) for rank in RANKS}}
    for name, count in counts.items():
        print(f"{name}: {count / 1e9:.2f} GFLOP a step, {count / counts['full']:.3f} of full fine-tuning")
    return 0


def compared(folder: pathlib.Path, reviews: int, steps: int, seeds: int) -> pathlib.Path:
    """Run the comparison, or go on with it, and return its root."""
    folder.mkdir(parents=True, exist_ok=True)
    base = methods.spec_of(steps)
    base["data"] |= {"train": str(models.reviews(reviews)), "seq_len": 64}
    base["train"] = {"max_steps": steps, "global_batch_size": 16, "per_device_train_batch_size": 16}
    base["resources"]["num_workers"] = 1
    del base["eval"]["eval_on_start"]
    ranks = [{"name": f"lora-r{rank}", "method": "lora", "lora": {"rank": rank, "alpha": ALPHA}} for rank in RANKS]
    spec = {"kind": "compare", "name": "reviews", "methods": ["full", *ranks], "seeds": seeds, "num_gangs": 1}
    (folder / "compare.json").write_text(json.dumps(spec | {"base": {**base, "storage_path": "runs"}}, indent=1))
    begun = sorted((folder / "runs").glob("reviews-*"))
    given = ["--resume", str(begun[-1])] if begun else [str(folder / "compare.json")]
    environment = {**os.environ, "PYTHONPATH": str(methods.ROOT)}
    subprocess.run([sys.executable, "-m", "orchestrator", "run", *given], env=environment, check=True)
    return sorted((folder / "runs").glob("reviews-*"))[-1]


def tensors(path: pathlib.Path) -> dict[str, Array]:
    from safetensors.numpy import load_file

    found: dict[str, Array] = load_file(path)
    return found


def full_changes(model: pathlib.Path, base: Mapping[str, Array]) -> list[Array]:
    """Return the singular values of the change of each matrix in the layers of the encoder."""
    found = []
    for name, weights in tensors(model / "model.safetensors").items():
        before = base.get(name, base.get(name.partition(".")[2]))
        if before is not None and weights.ndim == 2 and ".layer." in name:
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


def flops(rank: int | None, rows: int = 16, tokens: int = 64) -> int:
    """Count the matrix products of a forward and a backward pass; of LoRA if there is a rank."""
    import torch
    from peft import LoraConfig, get_peft_model
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(models.minilm(), num_labels=2)
    if rank is not None:
        settings = LoraConfig(r=rank, target_modules="all-linear", modules_to_save=["classifier"])
        model = get_peft_model(model, settings)
    batch = {name: torch.ones(rows, tokens, dtype=torch.long) for name in ("input_ids", "attention_mask")}
    with FlopCounterMode(display=False) as counter:
        model(**batch).logits.sum().backward()
    return int(counter.get_total_flops())


if __name__ == "__main__":
    sys.exit(main())
