"""Preparation keeps within a bound of memory that its source exceeds several times."""

import json
import pathlib
import random
import subprocess
import sys

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from jobs.data.prepared import Prepared
from jobs.spec.load import dump_spec
from tests.support.gangs import ROOT
from tests.support.textdata import text_spec

# Resident memory of the process that prepares, the mapped files of libraries included. A source of 200 MB takes 500 MB.
BOUND_BYTES = 650 * 10**6
SOURCE_BYTES = 7 * 10**8
WORDS = [f"word{number:04d}" + "x" * 160 for number in range(1000)]  # long, so that much text is tokenised quickly

PREPARE = """
import sys
from jobs.data.preparation.prepare import prepare
from jobs.spec.load import load_spec

spec = load_spec(sys.argv[1])
print(prepare(spec, spec.model.path, engine="plain", say=lambda line: None).root)
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


@pytest.fixture
def word_tokenizer(tmp_path: pathlib.Path) -> str:
    vocabulary = {word: number for number, word in enumerate(["<unk>", "</s>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    folder = tmp_path / "tokenizer"
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", pad_token="</s>"
    ).save_pretrained(str(folder))
    return str(folder)


def write_source(path: pathlib.Path, size: int) -> int:
    """Lines of 5,000 to 30,000 bytes, drawn from a few hundred; how many there are."""
    draw = random.Random(0)
    lines = [
        json.dumps({"text": " ".join(draw.choices(WORDS, k=draw.randint(50, 300)))}).encode() + b"\n"
        for _ in range(400)
    ]
    written = rows = 0
    with path.open("wb") as file:
        while written < size:
            written += file.write(draw.choice(lines))
            rows += 1
    return rows


@pytest.mark.slow
def test_memory_is_bounded_whatever_the_size_of_the_source(tmp_path: pathlib.Path, word_tokenizer: str) -> None:
    """The only one with a source that is larger than the memory that its preparation may have."""
    rows = write_source(tmp_path / "large.jsonl", SOURCE_BYTES)
    spec = text_spec(tmp_path / "out", word_tokenizer, str(tmp_path / "large.jsonl"), seq_len=2048)
    (tmp_path / "job.json").write_bytes(dump_spec(spec))
    command = [sys.executable, "-c", PREPARE, str(tmp_path / "job.json")]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    root, peak_kib = done.stdout.splitlines()
    peak = int(peak_kib) * 1024
    (train,) = Prepared.open(root).manifest.splits["train"]
    assert train.samples == rows and train.tokens / (train.rows * 2048) > 0.98
    assert 8 * train.tokens > 3 * 10**7  # bytes written: much data goes out, too
    print(f"peak {peak / 1e6:.0f} MB for a source of {SOURCE_BYTES / 1e6:.0f} MB, {train.tokens:,} tokens")
    assert peak < BOUND_BYTES
