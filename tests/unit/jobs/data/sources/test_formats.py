"""Source files as records, and records as samples. Imports neither ray nor torch nor transformers."""

import gzip
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import DataError
from jobs.data.sources import records
from jobs.data.sources.bad_records import BadRecord
from jobs.data.sources.dialogues import ChatSample
from jobs.data.sources.first_records import format_bad_records, look_at
from jobs.data.sources.formats import ClassSample, Reading, TextSample, sample_of
from jobs.data.sources.patterns import expand
from jobs.data.sources.records import Record, RecordReader
from jobs.model_files.directory import has_chat_template
from jobs.spec.data import Columns

pytestmark = pytest.mark.usefixtures("own_protocols")


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def reading(format: str = "text", num_labels: int | None = None, **fields: Any) -> Reading:
    columns = Columns.model_validate(fields.pop("columns", {}))
    return Reading(format, columns, fields.pop("labels", None), num_labels)


def sample(value: dict[str, Any], num_labels: int | None = None, **fields: Any) -> Any:
    return sample_of(Record("f.jsonl", 7, value), reading(num_labels=num_labels, **fields))


CLASSES = {"format": "classification", "labels": ("neg", "pos")}


def test_import_is_light() -> None:
    code = (
        "import sys, jobs.data.sources.formats, jobs.model_files.tokenizer, jobs.data.preparation.packing; "
        "print([m for m in ('torch', 'ray', 'transformers', 'pyarrow') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_glob_gives_sorted_files(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "c.csv"):
        write(tmp_path / name, "")
    assert expand(f"{tmp_path}/*.jsonl") == (f"{tmp_path}/a.jsonl", f"{tmp_path}/b.jsonl")


def test_glob_leaves_hidden_names_out_unless_it_asks_for_them(tmp_path: Path) -> None:
    for name in ("a.jsonl", "._a.jsonl", ".ipynb_checkpoints/a-checkpoint.jsonl", "b/c.jsonl", "b/_old/c.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        write(tmp_path / name, "")
    assert expand(f"{tmp_path}/*.jsonl") == (f"{tmp_path}/a.jsonl",)
    assert expand(f"{tmp_path}/**/*.jsonl") == (f"{tmp_path}/a.jsonl", f"{tmp_path}/b/c.jsonl")
    assert expand(f"{tmp_path}/b/_*/*.jsonl") == (f"{tmp_path}/b/_old/c.jsonl",)
    below = tmp_path / ".hidden"
    below.mkdir()
    write(below / "d.jsonl", "")
    assert expand(f"{below}/*.jsonl") == (f"{below}/d.jsonl",), "what stands before the pattern is the user's choice"


def test_file_name_with_brackets_is_no_glob(tmp_path: Path) -> None:
    path = write(tmp_path / "part[1].jsonl", "{}")
    assert expand(path) == (path,)


def test_url_keeps_its_protocol() -> None:
    import fsspec

    with fsspec.open("memory://bucket/x.jsonl", "wb") as file:
        file.write(b'{"text": "a"}\n')
    (found,) = expand("memory://bucket/*.jsonl")
    assert found.startswith("memory://")
    assert [row.value for row in RecordReader(found) if isinstance(row, Record)] == [{"text": "a"}]


@pytest.mark.parametrize(
    ("name", "message"),
    [("none*.jsonl", "no file matches"), ("x.doc", r"\.jsonl, \.ndjson, \.csv"), ("sub", "holds no data")],
)
def test_what_cannot_be_expanded_is_refused(tmp_path: Path, name: str, message: str) -> None:
    write(tmp_path / "x.doc", "a")
    (tmp_path / "sub").mkdir()
    with pytest.raises(DataError, match=message):
        expand(f"{tmp_path}/{name}")


def test_unknown_protocol_is_refused() -> None:
    with pytest.raises(DataError, match=r"cannot look for nosuch://x/\*\.jsonl: the protocol nosuch:// is not allowed"):
        expand("nosuch://x/*.jsonl")


def test_a_misspelt_file_is_answered_with_the_one_that_is_there(tmp_path: Path) -> None:
    write(tmp_path / "mails.csv", "text,label")
    with pytest.raises(DataError, match=r"no file matches .*; did you mean mails\.csv\?$"):
        expand(f"{tmp_path}/mail.csv")


def test_jsonl_tells_bad_lines_from_good_ones(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbf{"text": "a"}\r\n\n{"text": \n[1]\n"x"\n{"text": "\xff"}\n   \n{"text": "z"}'
    rows = list(RecordReader(write(tmp_path / "x.jsonl", content)))
    assert [(row.line, type(row).__name__) for row in rows] == [
        (1, "Record"),
        (3, "BadRecord"),
        (4, "BadRecord"),
        (5, "BadRecord"),
        (6, "BadRecord"),
        (8, "Record"),
    ]
    reasons = [row.reason for row in rows if isinstance(row, BadRecord)]
    assert [reason.split(":")[0] for reason in reasons[:1]] == ["not JSON"]
    assert "array" in reasons[1] and "string" in reasons[2] and "UTF-8" in reasons[3]


def test_deep_json_is_a_bad_row(tmp_path: Path) -> None:
    (row,) = RecordReader(write(tmp_path / "x.jsonl", '{"text":' + "[" * 100_000))
    assert isinstance(row, BadRecord)


def test_csv_counts_lines_of_quoted_records(tmp_path: Path) -> None:
    content = '\ufefftext,label\r\n"two\nlines",1\r\n\r\nshort\r\n"say ""hi"", all",0\r\na,b,c\r\n"x"y,1\r\nlast,1\r\n'
    rows = list(RecordReader(write(tmp_path / "x.csv", content)))
    assert [row.line for row in rows] == [2, 5, 6, 7, 8, 9]
    assert rows[0] == Record(str(tmp_path / "x.csv"), 2, {"text": "two\nlines", "label": "1"})
    assert rows[2] == Record(str(tmp_path / "x.csv"), 6, {"text": 'say "hi", all', "label": "0"})
    reasons = [row.reason for row in rows if isinstance(row, BadRecord)]
    assert reasons[0] == "1 fields, but the header has 2" and reasons[1] == "3 fields, but the header has 2"
    assert reasons[2].startswith("not CSV")


def test_csv_counts_every_line_that_a_quote_takes_with_it(tmp_path: Path) -> None:
    content = 'text,label\n"open,1\nb,2\nc,3\n"x"y,4\nlast,5\n'
    rows = list(RecordReader(write(tmp_path / "x.csv", content)))
    assert [(row.line, isinstance(row, BadRecord)) for row in rows] == [
        (2, True), (3, True), (4, True), (5, True), (6, False),
    ]  # fmt: skip


def test_csv_field_beyond_every_limit_ends_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "LONGEST_CSV_FIELD", 100)
    path = write(tmp_path / "x.csv", 'text,label\na,1\n"' + "b,2\n" * 50 + '",3\n')
    with pytest.raises(DataError, match=r"x\.csv:3: a field of this record has more than 100 characters"):
        list(RecordReader(path))


def test_csv_field_of_more_than_pythons_limit_is_read(tmp_path: Path) -> None:
    (row,) = RecordReader(write(tmp_path / "x.csv", "text\n" + "word " * 100_000 + "\n"))
    assert isinstance(row, Record)


def test_csv_with_bytes_that_are_not_utf8_loses_that_row_only(tmp_path: Path) -> None:
    rows = list(RecordReader(write(tmp_path / "x.csv", b"text\nok\n\xff\xfe\nzo\xc3\xab\n")))
    assert [type(row) for row in rows] == [Record, BadRecord, Record]


@pytest.mark.parametrize(
    ("content", "message"), [('text\nok\n"never closed\nx\n', r"x\.csv:3: .* never closed"), ("a,a\n1,2\n", "twice")]
)
def test_broken_csv_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = write(tmp_path / "x.csv", content)
    with pytest.raises(DataError, match=message):
        list(RecordReader(path))


@given(st.lists(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0")), min_size=2, max_size=2)))
def test_csv_gives_back_what_was_written(table: list[list[str]]) -> None:
    import csv
    import io
    import tempfile

    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows([["a", "b"], *table])
    with tempfile.TemporaryDirectory() as folder:
        rows = list(RecordReader(write(Path(folder) / "x.csv", text.getvalue())))
    assert [list(row.value.values()) for row in rows if isinstance(row, Record)] == table


def test_parquet_counts_rows(tmp_path: Path) -> None:
    path = str(tmp_path / "x.parquet")
    turns = [[{"role": "user", "content": "hi"}, {"role": "assistant", "content": str(n)}] for n in range(600)]
    pq.write_table(pa.table({"messages": turns}), path)
    rows = list(RecordReader(path))
    assert [row.line for row in rows] == list(range(1, 601))
    last = rows[-1]
    assert isinstance(last, Record)
    assert sample_of(last, reading("chat")) == ChatSample((("user", "hi"), ("assistant", "599")))


def test_gzip_is_read_and_damage_is_refused(tmp_path: Path) -> None:
    packed = gzip.compress(b'{"text": "a"}\n' * 1000)
    assert len(list(RecordReader(write(tmp_path / "x.jsonl.gz", packed)))) == 1000
    for name, content in (("y.jsonl.gz", packed[:-12]), ("z.csv.gz", b"text\na\n"), ("p.parquet", b"PAR1 not")):
        path = write(tmp_path / name, content)
        with pytest.raises(DataError, match=name):
            list(RecordReader(path))


def test_text_must_be_there_and_be_text() -> None:
    assert sample({"text": " a "}) == TextSample(" a ")
    refused: list[tuple[dict[str, Any], str]] = [
        ({"body": "a"}, "no column 'text'; it has 'body'"),
        ({"text": None}, "'text' is null"),
        ({"text": 5}, "'text' is a int, expected text"),
        ({"text": " \n"}, "'text' is empty"),
        ({"text": "\ud800"}, "'text' holds half of a surrogate pair, which is no character"),
    ]
    for value, reason in refused:
        assert sample(value) == BadRecord("f.jsonl", 7, reason)


@pytest.mark.parametrize(
    ("label", "expected"),
    [("pos", 1), (" neg ", 0), (1, 1), ("0", 0), (1.0, 1), ("1.0", 1), (np.int64(1), 1), (np.float32(1), 1)],
)
def test_labels_are_names_or_ids(label: Any, expected: int) -> None:
    assert sample({"text": "a", "label": label}, 2, **CLASSES) == ClassSample("a", expected)


def test_name_of_a_class_wins_over_its_id() -> None:
    stars = {"format": "classification", "labels": ("1", "2", "3")}
    for one in (1, "1", 1.0):
        assert sample({"text": "a", "label": one}, 3, **stars) == ClassSample("a", 0)


@pytest.mark.parametrize("label", [0, "0", 0.0, "7", -1])
def test_where_classes_are_named_by_numbers_other_numbers_are_no_class(label: Any) -> None:
    row = sample({"text": "a", "label": label}, 3, format="classification", labels=("1", "2", "3"))
    assert isinstance(row, BadRecord) and row.fatal and "unknown label" in row.reason


@pytest.mark.parametrize(
    ("label", "reason", "fatal"),
    [
        ("maybe", r"unknown label 'maybe': data.labels is \['neg', 'pos'\]", True),
        (2, "label 2 is outside 0 to 1", True),
        ("-1", "label '-1' is outside 0 to 1", True),
        (1.5, "label 1.5 is not a whole number", False),
        ("1.5", "label '1.5' is not a whole number", False),
        (True, "label is a bool, .*: write 0 and 1, or class names", False),
        (np.False_, "label is a bool_?, .*: write 0 and 1, or class names", False),
        ([1], "label is a list", False),
        ("", "label is empty", False),
        (float("nan"), "label is empty", False),
        (None, "'label' is null", False),
    ],
)
def test_labels_that_are_no_class_are_refused(label: Any, reason: str, fatal: bool) -> None:
    import re

    row = sample({"text": "a", "label": label}, 2, **CLASSES)
    assert isinstance(row, BadRecord) and row.fatal == fatal
    assert re.match(reason, row.reason)


def test_without_names_only_numbers_are_labels() -> None:
    row = sample({"text": "a", "label": "pos"}, 2, format="classification")
    assert isinstance(row, BadRecord) and row.fatal and "data.labels" in row.reason


def test_check_names_the_columns_and_the_likely_one(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "Texts,label\na,1\n")
    with pytest.raises(DataError, match=r"no column 'text'; it has 'Texts', 'label'\. Did you mean 'Texts'\?"):
        look_at(reading("classification", 2), path)


def test_an_input_column_that_is_named_must_be_there(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", '{"instruction": "a", "context": "b", "output": "c"}\n')
    of = {"format": "instruction", "labels": None, "num_labels": None}
    look_at(Reading(columns=Columns(), **of), path)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"no column 'contxt'.*Did you mean 'context'"):
        look_at(Reading(columns=Columns(input="contxt"), **of), path)  # type: ignore[arg-type]


def test_check_stops_at_the_first_wrong_label(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "text,label\na,1\nb,7\n")
    with pytest.raises(DataError, match=r"x\.csv:3: label '7' is outside 0 to 1"):
        look_at(reading("classification", 2), path)


def test_check_refuses_a_source_without_a_usable_row(tmp_path: Path) -> None:
    empty = write(tmp_path / "e.jsonl", "\n")
    with pytest.raises(DataError, match="holds no records"):
        look_at(reading(), empty)
    useless = write(tmp_path / "u.jsonl", '{"text": ""}\n' * 3)
    with pytest.raises(DataError, match=r"none of the first 3 records .*\n  .*u\.jsonl:1: 'text' is empty"):
        look_at(reading(), useless)


@pytest.mark.parametrize(("name", "head"), [("x.csv", b"text\n"), ("x.txt", b"")])
def test_a_file_in_another_encoding_comes_with_the_command_that_converts_it(
    tmp_path: Path, name: str, head: bytes
) -> None:
    useless = write(tmp_path / name, head + b"caf\xe9\n" * 3)
    with pytest.raises(DataError, match=r"not UTF-8(.|\n)*iconv -f WINDOWS-1252 -t UTF-8 old > new"):
        look_at(reading(), useless)
    looked = look_at(reading(), write(tmp_path / name, head + b"caf\xe9\ntext\n"))
    assert "iconv" in str(format_bad_records(looked, 0.01)[0])


def test_check_reads_no_further_than_asked(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", '{"text": "a"}\n' * 10 + '{"text": 1}\n' * 10)
    look_at(reading(), path, max_records=10)


def test_chat_template_is_found_wherever_it_is_kept(tmp_path: Path) -> None:
    assert not has_chat_template(str(tmp_path))
    config = tmp_path / "tokenizer_config.json"
    write(config, "{}")
    assert not has_chat_template(str(tmp_path))
    write(config, '{"chat_template": "{{ messages }}"}')
    assert has_chat_template(str(tmp_path))
    config.unlink()
    write(tmp_path / "chat_template.jinja", "x")
    assert has_chat_template(str(tmp_path))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("records", "files"), [(3_500, 1), (1_000, 4), (40_000, 1)])
def test_the_number_of_records_is_estimated_well(tmp_path: Path, records: int, files: int, packed: bool) -> None:
    """Reading is ahead of the records by a block, which may be all of a small file."""
    rows = "".join(f'{{"text": "{"" if number < 25 else number}"}}\n' for number in range(records))
    for number in range(files):
        content = gzip.compress(rows.encode()) if packed else rows.encode()
        write(tmp_path / f"{number}.jsonl{'.gz' if packed else ''}", content)
    looked = look_at(reading(), str(tmp_path))
    assert looked.expected_records == pytest.approx(records * files, rel=0.25)
    assert format_bad_records(looked, 0.01)[0] is None or 25 * files > 0.01 * records * files


@pytest.mark.parametrize("files", [2, 8])
def test_bad_rows_of_tables_are_judged_with_any_number_of_files(tmp_path: Path, files: int) -> None:
    table = pa.table({"text": ["a" if number % 10 == 0 else None for number in range(1000)]})
    for number in range(files):
        pq.write_table(table, tmp_path / f"{number}.parquet")
    looked = look_at(reading(), str(tmp_path))
    assert looked.expected_records == pytest.approx(1000 * files, rel=0.25)
    assert "at most 0.01 of all records" in str(format_bad_records(looked, 0.01)[0])
