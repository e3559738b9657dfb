"""Plain text, tab-separated columns, and data files that are looked for by a wrong name."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from cluster.errors import DataError
from jobs.data.sources.bad_records import BadRecord
from jobs.data.sources.first_records import format_joined, look_at
from jobs.data.sources.formats import Reading
from jobs.data.sources.patterns import expand
from jobs.data.sources.records import Record, RecordReader
from jobs.spec.data import Columns

BOM = b"\xef\xbb\xbf"


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def test_a_text_file_has_a_record_for_each_line_that_is_not_blank(tmp_path: Path) -> None:
    content = BOM + b"one, two\r\n\r\n   \n  indented\ncaf\xe9\nnul\0\nlast"
    rows = list(RecordReader(write(tmp_path / "x.txt", content)))
    assert [row.line for row in rows] == [1, 4, 5, 6, 7]
    texts = [row.value["text"] if isinstance(row, Record) else row.reason[:9] for row in rows]
    assert texts == ["one, two", "  indented", "not UTF-8", "not text:", "last"]


def test_tab_separated_columns_are_read_with_their_commas_and_quotes(tmp_path: Path) -> None:
    content = 'text\tlabel\none, two\t1\n"a ""quoted""\ttab"\t0\nonly one\n'
    first, second, bad = (
        row.value if isinstance(row, Record) else row.reason for row in RecordReader(write(tmp_path / "x.tsv", content))
    )
    assert first == {"text": "one, two", "label": "1"} and second == {"text": 'a "quoted"\ttab', "label": "0"}
    assert bad == "1 fields, but the header has 2"


@pytest.mark.parametrize("delimiter", ["\t", ","])
def test_records_that_a_quote_joins_are_marked(tmp_path: Path, delimiter: str) -> None:
    lines = [f"text {number}{delimiter}{number % 2}" for number in range(30)]
    lines[5], lines[15] = f'"Yes{delimiter}1', f'no"{delimiter}0'
    lines[20] = '"a line, and\nanother, of one text"' + f"{delimiter}0"
    name = "x.tsv" if delimiter == "\t" else "x.csv"
    path = write(tmp_path / name, "\n".join([f"text{delimiter}label", *lines]))
    rows = [row for row in RecordReader(path) if isinstance(row, Record)]
    assert (len(rows), [row.line for row in rows if row.joined]) == (20, [7])
    warning = format_joined(look_at(Reading("text", Columns()), path))
    assert warning is not None and "1 of 20 records may hold several" in warning and f"{name}:7. " in warning
    assert f"delimiter={delimiter!r}, quoting=csv.QUOTE_NONE" in warning


@pytest.mark.parametrize("text", ["It cost 1,000 euros\nthanks", "Dear X,\nhello", "def f(a,b):\n    return g(a,b)\n"])
def test_quoted_texts_with_commas_and_line_ends_are_one_record(tmp_path: Path, text: str) -> None:
    (row,) = RecordReader(write(tmp_path / "x.csv", f'text,label\n"{text}",1\n'))
    assert isinstance(row, Record) and not row.joined and row.value["text"] == text


def test_errors_in_tab_separated_columns_say_how_to_quote(tmp_path: Path) -> None:
    (bad,) = RecordReader(write(tmp_path / "x.tsv", 'text\tlabel\n"a" b\t1\n'))
    assert isinstance(bad, BadRecord) and bad.kind == "not TSV"
    assert bad.reason.startswith("not TSV: '\\t' expected after") and "double a quote" in bad.reason
    with pytest.raises(DataError, match=r"never closed.*csv\.QUOTE_NONE"):
        list(RecordReader(write(tmp_path / "x.tsv", 'text\tlabel\n"a b\t1\n')))


@pytest.mark.parametrize("name", ["x.txt", "x.jsonl"])
def test_lines_that_end_in_carriage_returns_only_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=re.escape(r"as: tr '\r' '\n' < old > new")):
        list(RecordReader(write(tmp_path / name, '{"text": "a"}\r{"text": "b"}\r')))
    assert len(list(RecordReader(write(tmp_path / name, '{"text": "a"}\r')))) == 1


def test_text_files_beside_other_data_are_not_taken_for_data(tmp_path: Path) -> None:
    for name in ("notes.txt", "LICENSE.txt", "a.jsonl"):
        write(tmp_path / name, "")
    assert [Path(file).name for file in expand(str(tmp_path))] == ["a.jsonl"]
    (tmp_path / "a.jsonl").unlink()
    assert [Path(file).name for file in expand(str(tmp_path))] == ["LICENSE.txt", "notes.txt"]


def test_a_file_that_is_missing_is_answered_with_a_near_one(tmp_path: Path) -> None:
    write(tmp_path / "mails.jsonl", "")
    with pytest.raises(DataError) as caught:
        expand(f"{tmp_path}/mail.jsonl")
    assert str(caught.value).count(str(tmp_path)) == 1 and "did you mean mails.jsonl" in str(caught.value)


@pytest.mark.parametrize("pattern", ["", "/*.csv", "/in/*"])
def test_a_file_whose_name_is_not_utf8_is_refused_before_it_is_read(tmp_path: Path, pattern: str) -> None:
    (tmp_path / "in").mkdir()
    try:
        for folder in (tmp_path, tmp_path / "in"):
            Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.csv")).write_text("text\na\n")
    except OSError:
        pytest.skip("this file system refuses such names")
    with pytest.raises(DataError, match=r"caf\\xe9\.csv: rename it, because its name is not UTF-8$"):
        expand(f"{tmp_path}{pattern}")
