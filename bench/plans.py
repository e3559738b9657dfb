"""Plan language models of known shapes on 1 to 64 GPUs, and print the table of docs/planning.md.

    python -m bench.plans [--on H100-80] [--gpus 1 2 4 8 16 32 64] [--seq-len 4096] [--batch 64]

Only configurations are read: the shapes below are those that the models' authors have published.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import tempfile
from typing import Any, Final

from cluster.text import compact, many
from jobs.planning.accelerators import GIB, Machines, accelerator_of
from jobs.planning.strategies import JobPlan, Option
from jobs.preflight.plan import plan_job
from jobs.spec.finetune import Spec

# hidden size, intermediate size, layers, heads, heads of keys and values, vocabulary, tied embeddings
SHAPES: Final = {
    "Llama 3.2 1B": (2048, 8192, 16, 32, 8, 128_256, True),
    "Llama 3.2 3B": (3072, 8192, 28, 24, 8, 128_256, True),
    "Llama 2 7B": (4096, 11_008, 32, 32, 32, 32_000, False),
    "Llama 3.1 8B": (4096, 14_336, 32, 32, 8, 128_256, False),
    "Llama 2 13B": (5120, 13_824, 40, 40, 40, 32_000, False),
    "Llama 3.1 70B": (8192, 28_672, 80, 64, 8, 128_256, False),
}
_GPUS_OF_A_NODE: Final = 8


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", default="H100-80")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--seq-len", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    print(f"| model | {' | '.join(many(count, 'GPU') for count in options.gpus)} |")
    print("|---|" + "---|" * len(options.gpus))
    with tempfile.TemporaryDirectory() as folder:
        for name, shape in SHAPES.items():
            spec = spec_of(pathlib.Path(folder), shape, options.seq_len, options.batch)
            cells = [cell(plan_job(spec, machines_of(count, options.on))) for count in options.gpus]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)
    return 0


def machines_of(count: int, name: str) -> Machines:
    nodes = -(-count // _GPUS_OF_A_NODE)
    return Machines(nodes, count // nodes, accelerator_of(name))


def spec_of(folder: pathlib.Path, shape: tuple[int, int, int, int, int, int, bool], seq_len: int, rows: int) -> Spec:
    hidden, intermediate, layers, heads, key_heads, vocabulary, tied = shape
    config: dict[str, Any] = {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "max_position_embeddings": seq_len,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return Spec.model_validate(
        {
            "model": {"path": str(folder), "task": "causal-lm"},
            "data": {"train": "text.jsonl", "format": "text", "seq_len": seq_len},
            "train": {"global_batch_size": rows, "max_steps": 1},
        }
    )


def cell(plan: JobPlan) -> str:
    best = plan.chosen
    if best is None:
        near = plan.nearest
        where = "" if near.missing else " of host memory"
        return f"no: lacks {(near.missing or near.missing_on_host) / GIB:.0f} GiB{where}"
    return f"{words(best)}: {best.memory.total / GIB:.0f} GiB, {compact(best.time.tokens_per_s)}"


def words(option: Option) -> str:
    strategy = option.strategy
    offload = "oo" if strategy.offload_param else "o" if strategy.offload_optimizer else ""
    again = "c" if strategy.gradient_checkpointing else ""
    return f"{strategy.stage}{offload}{again} x{strategy.per_device_train_batch_size}"


if __name__ == "__main__":
    sys.exit(main())
