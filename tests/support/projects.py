"""A user's folder as `ray job submit` ships it: spec, model, data, and a module with a metric of the user's own."""

from __future__ import annotations

import pathlib
from typing import Any

import yaml

from tests.support import tiny


def make_project(folder: pathlib.Path, storage: pathlib.Path, **train: Any) -> pathlib.Path:
    """`train`: changes of that section. The spec is `job.yaml`; the metric is what `accuracy` is."""
    folder.mkdir()
    tiny.save_model(folder / "model", "bert")
    tiny.write_labelled(folder / "labelled.jsonl", 200, 3)
    (folder / "my_metrics.py").write_text(
        "def share_right(given):\n    return (given.predictions.argmax(-1) == given.label_ids).mean()\n"
    )
    spec = {
        "name": "submitted",
        "model": {"path": "./model", "task": "sequence-classification", "num_labels": 3},
        "data": {"train": "labelled.jsonl", "format": "classification", "eval_fraction": 0.3, "seq_len": 64},
        "train": {"max_steps": 4, "global_batch_size": 8, "per_device_train_batch_size": 4, **train},
        "eval": {"metrics": ["accuracy", "my_metrics:share_right"]},
        "resources": {"num_workers": 2, "gpus_per_worker": 0},
        "storage_path": str(storage),
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(spec))
    return folder
