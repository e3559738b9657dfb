"""Logits of an exported model in a process of its own: `reload_logits.py AUTO_CLASS MODEL PREPARED TASK OUT.npy`.

A sixth argument names the base model; MODEL is then an adapter.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
import transformers

from jobs.data.prepared import Prepared
from jobs.training.model.batch import collate


def main() -> None:
    auto, model_dir, prepared, task, out, *base = sys.argv[1:]
    labels = {} if task == "causal-lm" else {"num_labels": 3}
    model = getattr(transformers, auto).from_pretrained(*base or [model_dir], **labels).eval()
    if base:
        import peft

        model = peft.PeftModel.from_pretrained(model, model_dir)
    rows = Prepared.open(prepared).split("train").read_rows(np.arange(3))
    batch = collate(rows, task, 0, torch.device("cpu"))  # type: ignore[arg-type]
    # With a cache, transformers forgets the borders of packed samples.
    extra = {"use_cache": False} if task == "causal-lm" else {}
    with torch.no_grad():
        logits = model(**batch.inputs, **extra).logits
    if batch.columns is not None:
        logits = logits[:, -batch.inputs["input_ids"].shape[1] :][:, batch.columns]  # a prompt precedes them
    np.save(out, logits.numpy())


if __name__ == "__main__":
    main()
