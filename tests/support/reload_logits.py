"""Logits of an exported model in a process of its own: `reload_logits.py AUTO_CLASS MODEL PREPARED TASK OUT.npy`."""

from __future__ import annotations

import sys

import numpy as np
import torch
import transformers

from jobs.data.prepared import Prepared
from jobs.training.model.batch import collate


def main() -> None:
    auto, model_dir, prepared, task, out = sys.argv[1:]
    model = getattr(transformers, auto).from_pretrained(model_dir).eval()
    rows = Prepared.open(prepared).split("train").read_rows(np.arange(3))
    batch = collate(rows, task, 0, torch.device("cpu"))  # type: ignore[arg-type]
    # With a cache, transformers forgets the borders of packed samples.
    extra = {"use_cache": False} if task == "causal-lm" else {}
    with torch.no_grad():
        logits = model(**batch.inputs, **extra).logits
    np.save(out, (logits if batch.columns is None else logits[:, batch.columns]).numpy())


if __name__ == "__main__":
    main()
