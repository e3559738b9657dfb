"""The model's config.json decides whether advice may name gradient checkpointing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.model_files.directory import supports_checkpointing
from jobs.spec.finetune import Spec


@pytest.mark.parametrize(
    ("content", "supports"),
    [
        (json.dumps({"model_type": "squeezebert"}), False),
        (json.dumps({"model_type": "bert"}), True),
        ("{", True),
        (None, True),  # as for a hub id
    ],
)
def test_only_a_type_without_it_is_said_to_lack_it(tmp_path: Path, content: str | None, supports: bool) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    model = {"path": str(tmp_path), "task": "sequence-classification", "num_labels": 2}
    data = {"train": "/d", "format": "classification", "seq_len": 64}
    assert supports_checkpointing(Spec.model_validate({"model": model, "data": data})) is supports
