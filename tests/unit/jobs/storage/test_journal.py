"""Records come back whole and in order from storage that can neither append nor rename."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from cluster.errors import StorageError
from jobs.storage import files as storage
from jobs.storage.journal import JournalReader, JournalWriter, read_journal


def test_records_come_back_in_order(tmp_path: Path) -> None:
    writer = JournalWriter(str(tmp_path / "j"))
    for number in range(100):
        writer.append({"n": number})
        if number % 7 == 0:
            writer.flush()
    writer.close()
    assert [record["n"] for record in read_journal(str(tmp_path / "j"))] == list(range(100))


def test_reader_gives_what_is_new_since_the_last_look(tmp_path: Path) -> None:
    folder = str(tmp_path / "j")
    writer, reader = JournalWriter(folder), JournalReader(folder)
    assert list(reader.new()) == []
    writer.append({"n": 1})
    writer.flush()
    assert list(reader.new()) == [{"n": 1}]
    writer.append({"n": 2})
    writer.close()
    assert list(reader.new()) == [{"n": 2}]
    assert list(reader.new()) == []


def test_nothing_is_written_where_nothing_was_said(tmp_path: Path) -> None:
    writer = JournalWriter(str(tmp_path / "j"))
    writer.flush()
    writer.close()
    assert storage.list_names(str(tmp_path / "j")) == []


def test_two_writers_do_not_overwrite_each_other(tmp_path: Path) -> None:
    folder = str(tmp_path / "j")
    one, two = JournalWriter(folder, "driver"), JournalWriter(folder, "rank-0")
    one.append({"from": "driver"})
    two.append({"from": "rank-0"})
    one.close()
    two.close()
    assert sorted(record["from"] for record in read_journal(folder)) == ["driver", "rank-0"]


def test_reader_passes_over_the_writer_it_is_told_to_skip(tmp_path: Path) -> None:
    folder = str(tmp_path / "j")
    for name in ("driver", "rank-0"):
        writer = JournalWriter(folder, name)
        writer.append({"from": name})
        writer.close()
    assert [record["from"] for record in JournalReader(folder, skip="driver").new()] == ["rank-0"]


def test_records_are_kept_while_storage_does_not_answer_and_close_says_so(tmp_path: Path) -> None:
    blocked = tmp_path / "j"
    blocked.touch()  # a file where the folder belongs
    writer = JournalWriter(str(blocked))
    writer.append({"n": 1})
    with pytest.raises(StorageError):
        writer.flush()
    blocked.unlink()
    writer.append({"n": 2})
    writer.close()
    assert read_journal(str(blocked)) == [{"n": 1}, {"n": 2}]


def test_parts_that_are_still_being_written_are_not_read(tmp_path: Path) -> None:
    (tmp_path / ".00000000000000000001-000000-0.jsonl.abc").write_text('{"n": ')
    assert read_journal(str(tmp_path)) == []


def test_a_file_that_no_writer_has_named_is_no_part(tmp_path: Path) -> None:
    writer = JournalWriter(str(tmp_path))
    writer.append({"n": 1})
    writer.close()
    for name in ("notes.jsonl", "1-0.jsonl", "copy of 00000000000000000001-0.jsonl"):
        (tmp_path / name).write_text("not JSON")
    assert list(JournalReader(str(tmp_path)).new()) == read_journal(str(tmp_path)) == [{"n": 1}]


def test_numbers_that_are_none_survive_in_json_that_every_reader_accepts(tmp_path: Path) -> None:
    writer = JournalWriter(str(tmp_path))
    writer.append({"loss": math.nan, "data": {"values": [math.inf, 1.0]}})
    writer.close()
    (part,) = tmp_path.glob("*.jsonl")
    assert part.read_text() == '{"loss": "NaN", "data": {"values": ["Infinity", 1.0]}}\n'
    part.write_text(part.read_text() + '{"loss": NaN, "data": {"values": [Infinity, 1.0]}}\n')  # of an earlier release
    for record in read_journal(str(tmp_path)):
        assert math.isnan(record["loss"]) and record["data"] == {"values": [math.inf, 1.0]}
