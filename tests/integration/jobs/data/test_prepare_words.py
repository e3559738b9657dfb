"""What a preparation says of data that trains, but not as its owner may think."""

from __future__ import annotations

import json
import re
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from jobs.data.preparation.prepare import prepare
from tests.integration.jobs.data.test_prepare import WORDS, model_dir, quiet, spec_of

__all__ = ["model_dir"]  # a fixture


def test_completions_without_an_end_token_are_a_warning(tmp_path: Path, model_dir: str) -> None:
    (tmp_path / "d.jsonl").write_text('{"prompt": "q", "completion": " a"}\n' * 5)
    spec = spec_of(tmp_path / "out", str(tmp_path / "d.jsonl"), "prompt-completion")
    said = list[str]()
    prepare(spec, model_dir, engine="plain", say=quiet, warn=said.append)
    assert said == []
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model_dir)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(str(tmp_path / "endless"))
    prepare(spec, str(tmp_path / "endless"), engine="plain", say=quiet, warn=said.append)
    (warning,) = said
    assert "the tokenizer has no end token" in warning


def test_pieces_of_long_texts_are_not_called_records(tmp_path: Path, model_dir: str) -> None:
    texts = [" ".join(WORDS * 40), "short text"]
    (tmp_path / "d.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    said = list[str]()
    prepare(spec_of(tmp_path / "out", str(tmp_path / "d.jsonl"), "text"), model_dir, engine="plain", say=said.append)
    assert re.search(r"^prepared (?!2 )\d+ samples of 2 records in", said[-1]), said[-1]
