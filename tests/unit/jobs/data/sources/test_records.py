"""Source files that are large, odd, damaged or directories, as records."""

from __future__ import annotations

import datetime
import decimal
import gzip
import io
import json
import os
import uuid
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import DataError
from jobs.data.sources.bad_records import BadRecord
from jobs.data.sources.formats import Reading, TextSample, sample_of
from jobs.data.sources.patterns import expand
from jobs.data.sources.records import Record, RecordReader
from jobs.spec.data import DATA_SUFFIXES, Columns

pytestmark = pytest.mark.usefixtures("own_protocols")

BOM = b"\xef\xbb\xbf"
BORDERS = (8192, 65536, 131072, 2**20)


def write(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def in_memory(name: str, content: bytes) -> str:
    url = f"memory://{uuid.uuid4().hex}/{name}"
    with fsspec.open(url, "wb") as file:
        file.write(content)
    return url


def values(file: str) -> list[Any]:
    """The value of each record; the reason of each row that is none."""
    return [row.value if isinstance(row, Record) else row.reason for row in RecordReader(file)]


def arrow_bytes(table: pa.Table, stream: bool, rows: int = 1000) -> bytes:
    sink = pa.BufferOutputStream()
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    return bytes(sink.getvalue().to_pybytes())


def parquet_bytes(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


TABLE = pa.table({"text": [f"row {number}" for number in range(2500)]})
LINES = b"".join(json.dumps(row).encode() + b"\n" for row in TABLE.to_pylist())
CSV = b"text\r\n" + b"".join(f"row {number}\r\n".encode() for number in range(2500))
TEXT = CSV.partition(b"\n")[2]
CONTENTS = {
    "x.jsonl": LINES,
    "x.ndjson": LINES,
    "x.json": LINES,
    "x.tsv": CSV,
    "x.txt": TEXT,
    "x.tsv.gz": gzip.compress(CSV),
    "x.txt.gz": gzip.compress(TEXT),
    "x.csv": CSV,
    "x.jsonl.gz": gzip.compress(LINES),
    "x.ndjson.gz": gzip.compress(LINES),
    "x.json.gz": gzip.compress(LINES),
    "x.csv.gz": gzip.compress(CSV),
    "x.parquet": parquet_bytes(TABLE),
    "x.arrow": arrow_bytes(TABLE, stream=True),
}


def test_every_supported_ending_has_a_sample_here() -> None:
    assert {name.removeprefix("x") for name in CONTENTS} == set(DATA_SUFFIXES)


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("local", [True, False])
def test_every_kind_is_read_from_a_path_and_a_url(tmp_path: Path, name: str, local: bool) -> None:
    file = write(tmp_path / name, CONTENTS[name]) if local else in_memory(name, CONTENTS[name])
    assert expand(file) == (file,) or not local
    assert values(file) == TABLE.to_pylist()


@pytest.mark.parametrize("name", CONTENTS)
def test_position_grows_to_the_size(tmp_path: Path, name: str) -> None:
    content = CONTENTS[name]
    if ".gz" in name:  # of several members, as many tools write it
        content = content * 30
    elif "parquet" not in name and "arrow" not in name:
        content = content * 20
    reader = RecordReader(write(tmp_path / name, content))
    assert (reader.size, reader.position) == (len(content), 0)
    seen = [reader.position for _ in reader]
    assert seen == sorted(seen) and seen[-1] <= reader.size
    assert len(set(seen)) > 4
    assert reader.position == reader.size


def test_position_is_of_the_compressed_file(tmp_path: Path) -> None:
    plain = b"".join(json.dumps({"text": os.urandom(40).hex()}).encode() + b"\n" for _ in range(20_000))
    reader = RecordReader(write(tmp_path / "x.jsonl.gz", gzip.compress(plain)))
    seen = [reader.position for _ in reader]
    half = seen[len(seen) // 2] / reader.size
    assert 0.4 < half < 0.65


@pytest.mark.parametrize("local", [True, False])
def test_a_directory_means_the_supported_files_under_it(tmp_path: Path, local: bool) -> None:
    root = str(tmp_path) if local else f"memory://{uuid.uuid4().hex}"
    names = ("b.jsonl", "a/z.csv.gz", "a/b/c.PARQUET", "d.json")
    for name in (*names, "README.md", "_tmp/x.csv", ".git/x.csv", "a/.x.csv", "a/_x.csv", "config.json"):
        with fsspec.open(f"{root}/{name}", "wb", **({"auto_mkdir": True} if local else {})) as file:
            file.write(b"{}")
    assert [file.removeprefix(expand(root)[0].partition("a/b/")[0]) for file in expand(root + "/")] == sorted(names)
    assert all(RecordReader(file).size == 2 for file in expand(root))


def test_a_directory_without_data_tells_what_it_has(tmp_path: Path) -> None:
    for name in ("a.md", "b/c.md", "LICENSE", ".x.csv"):
        write(tmp_path / name, "")
    with pytest.raises(
        DataError, match=r"holds no data: it has 2 \.md, .*1 hidden.*, but needs one of \.jsonl, .*arrow"
    ):
        expand(str(tmp_path))


def test_a_file_that_is_not_there_is_refused_at_once(tmp_path: Path) -> None:
    for missing in (f"{tmp_path}/x.jsonl", "memory://none/x.jsonl"):
        with pytest.raises(DataError, match="no such file"):
            RecordReader(missing)


@pytest.mark.parametrize("name", [name for name in CONTENTS if "parquet" not in name and "arrow" not in name])
def test_an_empty_file_holds_nothing(tmp_path: Path, name: str) -> None:
    assert values(write(tmp_path / name, b"")) == []
    if name.endswith(".gz"):
        assert values(write(tmp_path / name, gzip.compress(b""))) == []


def test_jsonl_with_bom_and_windows_line_ends(tmp_path: Path) -> None:
    assert values(write(tmp_path / "x.jsonl", BOM + b'{"a": 1}\r\n\r\n{"a": 2}\r\n')) == [{"a": 1}, {"a": 2}]


def test_csv_with_bom_and_windows_line_ends_counts_lines_of_quoted_fields(tmp_path: Path) -> None:
    content = BOM + b'"text",label\r\n"one\r\ntwo\nthree",1\r\n"say ""hi"", twice",0\r\n\r\n"\r\n",1\r\nlast,0'
    rows = list(RecordReader(write(tmp_path / "x.csv", content)))
    assert [row.line for row in rows] == [2, 5, 7, 9]
    texts = [row.value["text"] for row in rows if isinstance(row, Record)]
    assert texts == ["one\r\ntwo\nthree", 'say "hi", twice', "\r\n", "last"]


@pytest.mark.parametrize("packed", [False, True])
def test_long_lines_and_characters_over_the_borders_of_blocks_are_whole(tmp_path: Path, packed: bool) -> None:
    for border in BORDERS:
        for shift in (1, 2, 3):  # bytes of the character before the border
            for name, begin, end in (("x.jsonl", b'{"text": "', b'"}\n'), ("x.csv", b'text\n"', b'"\n')):
                text = "a" * (border - len(begin) - shift) + "\U0001f600" + "é" * 100
                content = begin + text.encode() + end
                assert content[border - shift : border - shift + 4] == "\U0001f600".encode()
                path = tmp_path / (name + ".gz" * packed)
                assert values(write(path, gzip.compress(content, 1) if packed else content)) == [{"text": text}]


def test_many_characters_of_four_bytes_are_whole(tmp_path: Path) -> None:
    rows = [{"text": "x" * (number % 7) + "\U0001f600" * 50} for number in range(6000)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    assert values(write(tmp_path / "x.jsonl.gz", gzip.compress(lines.encode()))) == rows
    table = "text\n" + "".join(f"{row['text']}\n" for row in rows)
    assert values(write(tmp_path / "x.csv", table)) == rows


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize(("name", "text"), [("x.jsonl", '{"text": "é"}\n'), ("x.csv", "text\né\n")])
def test_another_encoding_is_named(tmp_path: Path, name: str, text: str, encoding: str) -> None:
    for bom in ("", "\ufeff") if encoding in ("utf-16-le", "utf-16-be") else ("",):
        expected = encoding.upper()[:6]
        with pytest.raises(DataError, match=rf"{name} is encoded as {expected}.*: convert it, .* -t UTF-8"):
            values(write(tmp_path / name, (bom + text).encode(encoding)))


def test_nul_bytes_spoil_only_their_row(tmp_path: Path) -> None:
    first, bad, last = values(write(tmp_path / "x.jsonl", b'{"a": 1}\n{"a": "\0"}\n{"a": 2}\n'))
    assert (first, last) == ({"a": 1}, {"a": 2}) and "not JSON" in bad
    first, bad, last = values(write(tmp_path / "x.csv", b"a\n1\nx\0\0\n2\n"))
    assert (first, last) == ({"a": "1"}, {"a": "2"}) and "NUL bytes" in bad
    assert values(write(tmp_path / "y.jsonl", b"\0" * 100_000)) == [
        "not JSON: Expecting value: line 1 column 1 (char 0)"
    ]


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [("x.jsonl", b'{"a": "1"}\n{"a": "caf\xe9"}\n{"a": "2"}\n', 2), ("x.csv", b"a\n1\ncaf\xe9\n2\n", 3)],
)
def test_a_latin_1_row_is_a_bad_row(tmp_path: Path, name: str, content: bytes, line: int) -> None:
    first, bad, last = RecordReader(write(tmp_path / name, content))
    assert isinstance(first, Record) and isinstance(last, Record) and last.value == {"a": "2"}
    assert isinstance(bad, BadRecord) and bad.line == line and bad.reason.startswith("not UTF-8") and not bad.fatal


def test_json_is_taken_as_python_takes_it(tmp_path: Path) -> None:
    one, two = values(write(tmp_path / "x.jsonl", '{"a": NaN}\n{"a": -Infinity}\n'))
    assert one["a"] != one["a"] and two == {"a": float("-inf")}


def test_a_record_with_two_values_of_a_key_is_bad(tmp_path: Path) -> None:
    rows = ['{"text": "a", "text": "b"}', '{"text": "c", "more": [{"x": 1, "x": 1}]}', '{"text": "d"}']
    for name in ("x.jsonl", "x.json"):
        first, second, last = RecordReader(write(tmp_path / name, "\n".join(rows)))
        assert isinstance(first, BadRecord) and first.reason == "an object has two values of one key: 'text'"
        assert isinstance(second, BadRecord) and second.kind == "an object has two values of one key"
        assert isinstance(last, Record)


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.json.gz"])
@pytest.mark.parametrize(
    "content",
    [
        '[{"a": 1}, {"a": 2}]',
        '\n  [\n  {"a": 1},\n  {"a": 2}\n]\n',
        '[{"a": 1},\n{"a": 2}]\n',
        '{\n  "a": 1\n}\n',
        "[" + '{"a": 1}, ' * 100_000 + "{}]",
    ],
)
def test_a_json_document_over_several_lines_is_refused(tmp_path: Path, name: str, content: str) -> None:
    packed = gzip.compress(content.encode()) if name.endswith(".gz") else content
    with pytest.raises(DataError, match=r"JSON object in each line is expected. Convert .*jq -c '\.\[\]' old"):
        values(write(tmp_path / name, packed))


def test_one_array_among_objects_is_a_bad_row(tmp_path: Path) -> None:
    bad, good = values(write(tmp_path / "x.jsonl", '[1]\n{"a": 1}\n'))
    assert "JSON array" in bad and good == {"a": 1}


def test_the_first_line_of_a_json_file_decides(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="begins with 'hello'"):
        values(write(tmp_path / "x.json", "hello\n"))
    assert len(values(write(tmp_path / "x.json", '{"a": 1}\nhello\n{"a": "' + "b" * 200_000 + '"}\n'))) == 3
    assert values(write(tmp_path / "y.json", '{"a": "' + "b" * 200_000 + '"}')) == [{"a": "b" * 200_000}]


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.csv.gz"])
def test_a_truncated_gzip_tells_how_far_it_was_read(tmp_path: Path, name: str) -> None:
    rows = "text\n" if "csv" in name else ""
    for _ in range(20_000):
        noise = os.urandom(20).hex()
        rows += f"{noise}\n" if "csv" in name else json.dumps({"text": noise}) + "\n"
    content = gzip.compress(rows.encode())
    path = write(tmp_path / name, content[: len(content) // 2])
    read: list[Any] = []
    with pytest.raises(DataError, match=rf"{name} after line (\d+), at byte \d+ of {len(content) // 2}: ") as caught:
        read.extend(RecordReader(path))
    assert f"after line {read[-1].line}," in str(caught.value) and len(read) > 5000


def test_names_that_promise_another_kind_are_refused(tmp_path: Path) -> None:
    for name, content, message in [
        ("x.jsonl.gz", LINES, "Not a gzipped file.*let its name end without .gz"),
        ("x.jsonl", gzip.compress(LINES), "is gzip-compressed: let its name end in .gz"),
        ("x.csv", CONTENTS["x.parquet"], "is a Parquet file"),
        ("y.csv", b"PK\x03\x04...", "zip archive"),
        ("x.parquet", CSV, "cannot read .* after row 0"),
        ("x.arrow", CSV, "cannot read .* after row 0"),
        ("y.parquet", b"", "cannot read .* after row 0"),  # no Parquet or Arrow file has 0 bytes: an upload broke off
        ("y.arrow", b"", "cannot read .* after row 0"),
    ]:
        with pytest.raises(DataError, match=message):
            values(write(tmp_path / name, content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b" \na\n", "the header is empty"),
        (b'""\na\n', "the header is empty"),
        (b",,\na,b,c\n", "the header is empty"),
        (b"a,,\na,b,c\n", "a column twice: ''"),
        (b"text;label\na;1\n", r"is one column, 'text;label': is it separated by ';'\? .*delimiter=';'"),
        (b"text\tlabel\na\t1\n", r"is it separated by tabs\? End its name in \.tsv"),
        (b"caf\xe9,label\na,1\n", "header is not UTF-8"),
        (b'"x"y,label\na,1\n', r":1: not CSV: .*correct the header"),
    ],
)
def test_a_csv_header_that_names_no_columns_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        values(write(tmp_path / "x.csv", content))


def test_a_csv_header_may_stand_alone_and_may_leave_one_name_out(tmp_path: Path) -> None:
    assert values(write(tmp_path / "x.csv", "text,label\n")) == []
    assert values(write(tmp_path / "y.csv", ",text\n0,a\n")) == [{"": "0", "text": "a"}]  # as pandas writes its index


class Dropping(fsspec.AbstractFileSystem):  # type: ignore[misc]  # fsspec carries no types
    """A store whose connection breaks after the first block, with an error of its client's own."""

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": path, "size": len(LINES), "type": "file"}

    def _open(self, *_: Any, **__: Any) -> Any:
        class Broken(io.BytesIO):
            def read(self, size: int | None = -1) -> bytes:
                if self.tell():
                    raise RuntimeError("connection reset")
                return super().read(size)

        return Broken(LINES * 2)


def test_what_the_client_of_a_store_raises_becomes_a_data_error() -> None:
    fsspec.register_implementation("dropping", Dropping, clobber=True)
    with pytest.raises(DataError, match=r"after line \d{4}, at byte \d+ of \d+: RuntimeError: connection reset"):
        values("dropping://x.jsonl")


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_columns_of_tables_pass_as_python_values(tmp_path: Path, suffix: str) -> None:
    when = datetime.datetime(2024, 1, 2, 3, 4, 5)
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    table = pa.table(
        {
            "messages": [turns, None],
            "about": [{"id": 1, "tags": ["a"]}, None],
            "map": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int32())),
            "kind": pa.array(["neg", None]).dictionary_encode(),
            "large": pa.array(["big", None], pa.large_string()),
            "when": pa.array([when, None], pa.timestamp("us")),
            "price": pa.array([decimal.Decimal("1.50"), None], pa.decimal128(6, 2)),
        }
    )
    content = parquet_bytes(table) if suffix == ".parquet" else arrow_bytes(table, stream=False)
    first, second = values(write(tmp_path / f"x{suffix}", content))
    assert first["messages"] == turns and first["about"] == {"id": 1, "tags": ["a"]} and first["map"] == [("k", 1)]
    assert (first["kind"], first["large"], first["when"]) == ("neg", "big", when)
    assert first["price"] == decimal.Decimal("1.50")
    assert list(second) == table.column_names and set(second.values()) == {None}


def test_a_table_row_without_a_python_value_is_bad_only_where_the_column_is_read(tmp_path: Path) -> None:
    text = pa.array([b"a", b"caf\xe9", b"b"]).view(pa.string())
    late = pa.array([0, 2**62, 0], pa.timestamp("us"))  # in the year 148,000
    nowhere = pa.array([0, 0, 0], pa.timestamp("us", tz="Nowhere/City"))
    table = pa.table({"text": text, "other": ["x", "y", "z"], "at": late, "there": nowhere})
    for name, content in (
        ("x.parquet", parquet_bytes(table)),
        ("x.arrow", arrow_bytes(table, stream=True)),
    ):
        rows = list(RecordReader(write(tmp_path / name, content)))
        assert all(isinstance(row, Record) for row in rows)
        first, bad, last = (sample_of(row, Reading("text", Columns())) for row in rows if isinstance(row, Record))
        assert isinstance(bad, BadRecord) and bad.line == 2 and "'text' has no Python value" in bad.reason
        assert first == TextSample("a") and last == TextSample("b")
        others = [sample_of(row, Reading("text", Columns(text="other"))) for row in rows if isinstance(row, Record)]
        assert others == [TextSample("x"), TextSample("y"), TextSample("z")]


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    with pytest.raises(DataError, match="two columns of one name"):
        values(write(tmp_path / "x.parquet", parquet_bytes(table)))


@pytest.mark.parametrize("name", ["x.parquet", "x.arrow", "ipc.arrow"])
def test_a_truncated_table_is_refused(tmp_path: Path, name: str) -> None:
    content = arrow_bytes(TABLE, stream=False) if name.startswith("ipc") else CONTENTS[name]
    with pytest.raises(DataError, match=rf"cannot read .*{name} after row \d+: .*write the file again"):
        values(write(tmp_path / name, content[: len(content) * 2 // 3]))


@pytest.mark.parametrize("stream", [True, False])
def test_a_large_arrow_batch_is_read_in_parts(tmp_path: Path, stream: bool) -> None:
    content = arrow_bytes(TABLE, stream, rows=2500)
    reader = RecordReader(write(tmp_path / "x.arrow", content))
    seen = [(row.line, reader.position) for row in reader]
    assert [line for line, _ in seen] == list(range(1, 2501))
    positions = [position for _, position in seen]
    assert positions == sorted(positions) and positions[0] < positions[1250] < positions[-1] <= len(content)
