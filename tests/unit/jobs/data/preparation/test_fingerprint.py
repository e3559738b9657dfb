"""Data is recognised by its content: by the version that its store reports, or by a digest of all bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.data.preparation.fingerprint import SourceJob, source_jobs
from jobs.model_files.tokenizer import read_tokenizer
from jobs.spec.finetune import Spec
from tests.support.hub import empty_hub


def prepared_from(train: str, tmp_path: Path) -> SourceJob:
    (tmp_path / "m").mkdir(exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "m" / name).write_text("{}")
    model = {"path": str(tmp_path / "m"), "task": "causal-lm"}
    spec = Spec.model_validate(
        {"model": model, "data": {"train": train, "format": "text"}, "storage_path": str(tmp_path)}
    )
    return source_jobs(spec, read_tokenizer(str(tmp_path / "m")))["train"][0]


def test_data_on_the_hub_is_recognised_without_reading_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = empty_hub(monkeypatch)
    hub.pipe_file("/datasets/o/n/a.jsonl", b'{"text": "one"}\n')
    first = prepared_from("hf://datasets/o/n/a.jsonl", tmp_path)
    assert first.made_from["files"][0]["version"] == hub.info("/datasets/o/n/a.jsonl")["blob_id"]
    assert prepared_from("hf://datasets/o/n/a.jsonl", tmp_path).fingerprint == first.fingerprint
    hub.pipe_file("/datasets/o/n/a.jsonl", b'{"text": "two"}\n')
    assert prepared_from("hf://datasets/o/n/a.jsonl", tmp_path).fingerprint != first.fingerprint
