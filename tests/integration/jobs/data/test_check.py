"""`fleetune data check`: every planted fault is found with its file and line, and nothing else is."""

import gzip
import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from jobs.data.preparation.fingerprint import fingerprint
from jobs.data.preparation.prepare import prepare
from jobs.data.quality.check import check
from jobs.data.quality.duplicates import MOST_COMPARED, chosen_to_compare
from jobs.data.quality.report import DataReport, Finding
from jobs.spec.evaluation import Eval
from jobs.spec.finetune import Spec
from tests.integration.jobs.data.test_prepare import model_dir, quiet  # noqa: F401 - a fixture

WORDS = (Path(__file__).read_text().replace("_", " ") + Path(__file__).with_name("test_prepare.py").read_text()).split()
PLAIN = sorted({word.lower() for word in WORDS if word.isalpha() and len(word) > 2})


def sentence(draw: random.Random, words: int = 14) -> str:
    return f"{' '.join(draw.choices(PLAIN, k=words)).capitalize()}."


def spec_of(folder: Path, task: str, data: dict[str, Any]) -> Spec:
    model = {"path": "m", "task": task} | ({"num_labels": 3} if task == "sequence-classification" else {})
    return Spec.model_validate({"model": model, "data": {"seq_len": 512} | data, "storage_path": str(folder / "out")})


def report_of(folder: Path, model: str, task: str, **data: Any) -> DataReport:
    return check(spec_of(folder, task, data), model, engine="plain", say=quiet)


def jsonl(path: Path, rows: list[Any]) -> str:
    """Rows as lines of JSON; bytes as they are."""
    lines = [row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode() for row in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return str(path)


def places(report: DataReport) -> dict[str, list[tuple[str, int]]]:
    """Where each kind of finding was seen."""
    return {
        finding.kind: [(Path(example.file).name, example.line) for example in finding.examples]
        for finding in report.findings
    }


def found_kinds(report: DataReport) -> set[str]:
    return {finding.kind for finding in report.findings}


def found(report: DataReport, kind: str) -> Finding:
    (finding,) = [finding for finding in report.findings if finding.kind == kind]
    return finding


def dialogue(draw: random.Random) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": sentence(draw)},
        {"role": "assistant", "content": sentence(draw)},
    ]


def test_clean_files_have_no_finding(tmp_path: Path, model_dir: str) -> None:  # noqa: F811
    draw = random.Random(1)
    chats = jsonl(tmp_path / "chats.jsonl", [{"messages": dialogue(draw)} for _ in range(200)])
    report = report_of(tmp_path, model_dir, "causal-lm", train=chats, format="chat")
    assert (report.verdict, report.findings, report.blocked) == ("ok", (), None)
    assert (report.records, report.samples, report.bad_rows_file) == (200, 200, None)
    classes = jsonl(tmp_path / "classes.jsonl", [{"text": sentence(draw), "label": n % 3} for n in range(90)])
    held = jsonl(tmp_path / "held.jsonl", [{"text": sentence(draw), "label": n % 3} for n in range(30)])
    report = report_of(
        tmp_path, model_dir, "sequence-classification", train=classes, eval=held, format="classification"
    )
    assert (report.verdict, report.findings) == ("ok", ())
    assert [(label.label, label.train, label.eval) for label in report.labels] == [
        (str(number), 30, 10) for number in range(3)
    ]


def test_faults_of_dialogues_are_found_with_file_and_line(tmp_path: Path, model_dir: str) -> None:  # noqa: F811
    draw = random.Random(2)
    rows: list[Any] = [{"messages": dialogue(draw)} for _ in range(300)]
    talk = dialogue(draw)
    planted: dict[str, tuple[int, Any]] = {
        "bad-row: not JSON": (11, b'{"messages": ['),
        "bad-row: not UTF-8": (12, b'{"messages": [{"role": "user", "content": "caf\xe9"}]}'),
        "bad-row: a JSON array, but each line must hold an object": (13, [1, 2]),
        "bad-row: no column 'messages'": (14, {"text": "x"}),
        "bad-row: 'messages' is null": (15, {"messages": None}),
        "bad-row: messages is not a list of {role, content} with at least one turn": (16, {"messages": []}),
        "bad-row: turn N has no content": (17, {"messages": [{"role": "user"}]}),
        "bad-row: content of turn N is a list, expected text or a list of parts of type text": (
            18,
            {"messages": [{"role": "user", "content": ["a"]}]},
        ),
        "bad-row: no assistant turn, so nothing to learn": (19, {"messages": talk[:1]}),
        "bad-row: no token of the assistant is left after data.seq_len": (
            20,
            {"messages": [{"role": "user", "content": sentence(draw, 600)}, talk[1]]},
        ),
        "exact-duplicates": (51, rows[3]),
        "near-duplicates": (52, {"messages": [rows[4]["messages"][0], {**rows[4]["messages"][1]}]}),
        "turns-out-of-order": (61, {"messages": [talk[0], *dialogue(draw)]}),
        "assistant-first": (62, {"messages": [{"role": "assistant", "content": sentence(draw)}, *dialogue(draw)]}),
        "system-not-first": (
            63,
            {"messages": [*dialogue(draw), {"role": "system", "content": sentence(draw)}, *dialogue(draw)]},
        ),
        "ends-without-answer": (64, {"messages": [*dialogue(draw), {"role": "user", "content": sentence(draw)}]}),
        "unknown-role": (65, {"messages": [{"role": "narrator", "content": sentence(draw)}, *dialogue(draw)]}),
        "empty-answer": (66, {"messages": [*dialogue(draw), talk[0], {"role": "assistant", "content": " "}]}),
        "empty-question": (67, {"messages": [{"role": "user", "content": ""}, dialogue(draw)[1]]}),
        "mojibake": (
            71,
            {"messages": [dialogue(draw)[0], {"role": "assistant", "content": "A caf\u00c3\u00a9 it is."}]},
        ),
        "replacement-character": (
            72,
            {"messages": [dialogue(draw)[0], {"role": "assistant", "content": "A caf\ufffd."}]},
        ),
        "windows-1252": (73, {"messages": [dialogue(draw)[0], {"role": "assistant", "content": "It\x92s so."}]}),
        "control-characters": (74, {"messages": [dialogue(draw)[0], {"role": "assistant", "content": "A\x07 bell."}]}),
        "cut-by-seq-len": (
            75,
            {"messages": [dialogue(draw)[0], {"role": "assistant", "content": sentence(draw, 500)}]},
        ),
    }
    near = planted["near-duplicates"][1]["messages"]
    near[1]["content"] = near[1]["content"].replace(near[1]["content"].split()[-1], "otherwise.")
    for line, row in planted.values():
        rows[line - 1] = row
    path = jsonl(tmp_path / "chats.jsonl", rows)
    report = report_of(tmp_path, model_dir, "causal-lm", train=path, format="chat", max_bad_fraction=0.1)
    assert len(planted) >= 15
    assert places(report) == {kind: [("chats.jsonl", line)] for kind, (line, _) in planted.items()}
    assert report.verdict == "warnings" and report.blocked is None
    duplicate = found(report, "exact-duplicates").examples[0]
    assert (duplicate.other_file, duplicate.other_line) == (path, 4)
    assert found(report, "near-duplicates").examples[0].other_line == 5
    assert report.bad_rows_file is not None
    bad = [json.loads(line) for line in Path(report.bad_rows_file).read_text().splitlines()]
    assert [row["line"] for row in bad] == list(range(11, 21))
    strict = report_of(tmp_path, model_dir, "causal-lm", train=path, format="chat")
    assert strict.verdict == "errors" and str(strict.blocked).startswith(
        "10 of 300 records of data.train cannot be used"
    )


def test_faults_of_labelled_texts_are_found_with_file_and_line(tmp_path: Path, model_dir: str) -> None:  # noqa: F811
    draw = random.Random(3)
    rows = [f'"{sentence(draw)}",{number % 2}' for number in range(400)]
    rows[10] = rows[10].split(",")[0]  # one field of two
    rows[20] = f'"",{0}'
    rows[30] = f'"{sentence(draw)}",7'
    rows[40] = f'"{sentence(draw)}",0.5'
    rows[50] = f'"{sentence(draw)}",good'
    rows[60] = f'"{sentence(draw)}",'
    rows[70] = rows[5].rpartition(",")[0] + ",0"  # line 7 has label 1
    rows[80] = '"x",1'
    path = tmp_path / "reviews.csv"
    path.write_text("text,label\n" + "\n".join(rows) + "\n")
    held = jsonl(
        tmp_path / "held.jsonl", [{"text": rows[90].split('"')[1], "label": 0}, {"text": sentence(draw), "label": 0}]
    )
    report = report_of(
        tmp_path,
        model_dir,
        "sequence-classification",
        train=str(path),
        eval=held,
        format="classification",
        max_bad_fraction=0.1,
    )
    assert places(report) == {
        "bad-row: N fields, but the header has N": [("reviews.csv", 12)],
        "bad-row: 'text' is empty": [("reviews.csv", 22)],
        "bad-row: label is outside N to N": [("reviews.csv", 32)],
        "bad-row: label is not a whole number": [("reviews.csv", 42)],
        "bad-row: unknown label": [("reviews.csv", 52)],
        "bad-row: label is empty": [("reviews.csv", 62)],
        "exact-duplicates": [("reviews.csv", 72)],
        "exact-duplicates-across": [("held.jsonl", 1)],
        "conflicting-labels": [("reviews.csv", 72)],
        "nearly-empty": [("reviews.csv", 82)],
        "absent-classes": [],
        "classes-not-in-eval": [],
    }
    assert found(report, "exact-duplicates-across").examples[0].other_line == 92
    absent = found(report, "absent-classes")
    assert (absent.title, absent.unit) == ("classes without a sample in train: 2", "class")
    # A label that is no class stops `prepare`, however few there are.
    assert report.verdict == "errors" and report.blocked is not None and "reviews.csv:32: label '7'" in report.blocked


def test_each_source_is_announced_before_it_is_read(tmp_path: Path, model_dir: str) -> None:  # noqa: F811
    paths = [jsonl(tmp_path / f"{name}.jsonl", [{"text": f"{name} is a text."}] * 3) for name in ("one", "two")]
    said = list[str]()
    check(
        spec_of(tmp_path, "causal-lm", {"train": paths, "format": "text"}), model_dir, engine="plain", say=said.append
    )
    assert [line.partition(",")[0] for line in said if line.startswith("tokenising")] == [
        "tokenising data.train[0]: 1 file",
        "tokenising data.train[1]: 1 file",
    ]


def test_unknown_tokens_and_records_that_a_quote_joins_are_found(tmp_path: Path) -> None:
    draw = random.Random(5)
    words = Tokenizer(WordLevel({"[UNK]": 0, **{word: number for number, word in enumerate(PLAIN, 1)}}, "[UNK]"))
    words.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[UNK]").save_pretrained(
        tmp_path / "m"
    )
    rows = [f"{' '.join(draw.choices(PLAIN, k=12))}\t{number % 3}" for number in range(100)]
    rows[10] = "\u0434\u043e\u0431\u0440\u044b\u0439 \u0434\u0435\u043d\u044c \u0432\u0441\u0435\u043c\t1"
    rows[20], rows[30] = f'"{rows[20]}', rows[30].replace("\t", '"\t')
    path = tmp_path / "reviews.tsv"
    path.write_text("text\tlabel\n" + "\n".join(rows) + "\n")
    report = report_of(
        tmp_path, str(tmp_path / "m"), "sequence-classification", train=str(path), format="classification"
    )
    assert places(report) == {"joined-records": [("reviews.tsv", 22)], "unknown-tokens": [("reviews.tsv", 12)]}
    assert report.samples == 90 and found(report, "unknown-tokens").severity == "warning"


def test_texts_that_were_cut_at_their_source_are_told(tmp_path: Path, model_dir: str) -> None:  # noqa: F811
    draw = random.Random(4)
    whole = [sentence(draw, draw.randint(5, 18)) for _ in range(100)]
    rows = [{"text": text} for text in whole]
    for number in range(20, 40):
        rows[number] = {"text": sentence(draw, 60)[:200].rstrip(".") + ""}
    report = report_of(tmp_path, model_dir, "causal-lm", train=jsonl(tmp_path / "t.jsonl", rows), format="text")
    finding = found(report, "cut-at-source")
    assert finding.title == "texts of exactly 200 characters that end in mid-sentence"
    assert finding.count >= 15 and finding.examples[0].line == 21


def test_a_file_that_cannot_be_read_does_not_hide_what_is_in_others(tmp_path: Path, model_dir: str) -> None:  # noqa: F811
    draw = random.Random(5)
    folder = tmp_path / "data"
    folder.mkdir()
    jsonl(folder / "a.jsonl", [{"text": sentence(draw)} for _ in range(50)])
    whole = gzip.compress(b"".join(json.dumps({"text": sentence(draw)}).encode() + b"\n" for _ in range(5000)))
    (folder / "b.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    jsonl(folder / "c.jsonl", [{"text": sentence(draw)} for _ in range(50)])
    report = report_of(tmp_path, model_dir, "causal-lm", train=str(folder), format="text")
    assert report.verdict == "errors" and report.blocked is not None and "b.jsonl.gz" in report.blocked
    assert report.sources[0].samples > 100 and report.sources[0].files == 3


def test_general_text_is_prepared_but_not_checked_with_the_samples(tmp_path: Path, model_dir: str) -> None:  # noqa: F811
    draw = random.Random(1)
    rows = [{"text": sentence(draw)} for _ in range(40)]
    train, general = (
        jsonl(tmp_path / f"{name}.jsonl", rows[start:]) for name, start in (("train", 0), ("general", 30))
    )
    spec = spec_of(tmp_path, "causal-lm", {"train": train, "format": "text"})
    with_general = spec.model_copy(update={"eval": Eval(general=general, eval_steps=1)})
    report = check(with_general, model_dir, engine="plain", say=quiet)
    assert [source.where for source in report.sources] == ["data.train"]
    assert not found_kinds(report), "texts of train that are also in general text are no duplicates of one another"
    prepared = prepare(with_general, model_dir, engine="plain", say=quiet)
    assert {name: parts[0].samples for name, parts in prepared.manifest.splits.items()} == {"train": 40, "general": 10}
    assert fingerprint(with_general, model_dir)[0] != fingerprint(spec, model_dir)[0]


@pytest.mark.parametrize("engine", ["plain", "ray"])
def test_both_engines_report_the_same(local_ray: None, tmp_path: Path, model_dir: str, engine: Any) -> None:  # noqa: F811
    """The only check of data on Ray."""
    draw = random.Random(6)
    for number in range(3):
        rows: list[Any] = [{"messages": dialogue(draw)} for _ in range(400)]
        rows[7] = b"no"
        rows[9] = rows[8]
        jsonl(tmp_path / f"part-{number}.jsonl", rows)
    spec = spec_of(tmp_path, "causal-lm", {"train": f"{tmp_path}/part-*.jsonl", "format": "chat", "eval_fraction": 0.1})
    report = check(spec, model_dir, engine=engine, say=quiet)
    assert places(report) == {
        "bad-row: not JSON": [(f"part-{number}.jsonl", 8) for number in range(3)],
        "exact-duplicates": [(f"part-{number}.jsonl", 10) for number in range(3)],
    }
    assert report.train_samples + report.eval_samples == 1197 and report.packing is not None
    assert sum(report.lengths["train"].counts) == report.train_samples


def test_templates_are_compared_in_time_that_grows_with_their_number(tmp_path: Path, model_dir: str) -> None:  # noqa: F811
    """Each is near to all others; compared two by two, 6,000 would take a minute and more."""
    letter = "dear customer we have received your order and will send it to you within three working days number"
    rows = [{"text": f"{letter} {number}."} for number in range(6_000)]
    began_s = time.thread_time()
    report = report_of(tmp_path, model_dir, "causal-lm", train=jsonl(tmp_path / "t.jsonl", rows), format="text")
    assert found(report, "near-duplicates").count > 5_900
    assert time.thread_time() - began_s < 30


def test_those_that_are_compared_are_of_both_sides_of_a_split() -> None:
    content = np.random.default_rng(0).integers(0, 2**64, 3 * MOST_COMPARED, dtype=np.uint64)
    chosen = chosen_to_compare(content, np.ones(len(content), bool))
    held_out = content[chosen] < np.uint64(2**64 // 10)
    assert len(chosen) == MOST_COMPARED and 0.09 < held_out.mean() < 0.11


def test_a_split_that_would_be_empty_is_told(tmp_path: Path, model_dir: str) -> None:  # noqa: F811
    draw = random.Random(7)
    path = jsonl(tmp_path / "t.jsonl", [{"text": sentence(draw)} for _ in range(30)])
    report = report_of(tmp_path, model_dir, "causal-lm", train=path, format="text", eval_fraction=0.0001)
    assert report.verdict == "errors" and "leaves none for eval" in str(report.blocked)
