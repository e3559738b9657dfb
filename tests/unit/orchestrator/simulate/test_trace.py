"""Traces: what is read, and what each kind of bad input is told."""

from __future__ import annotations

import csv
import gzip
from collections import Counter
from pathlib import Path

import pytest

from cluster.errors import TraceError
from orchestrator.simulate.trace import read_trace
from orchestrator.simulate.values import TraceJob

EXTRACT = Path(__file__).parents[3] / "support" / "trace_extract.csv"
HEAD = "submit_s,duration_s,num_gpus,tenant\n"


def written(folder: Path, content: str | bytes, name: str = "trace.csv") -> str:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def refusal(folder: Path, content: str | bytes, most_gpus: int | None = 32) -> str:
    with pytest.raises(TraceError) as caught:
        read_trace(written(folder, content), most_gpus)
    return str(caught.value)


def test_extract_of_a_real_trace_is_read() -> None:
    jobs = read_trace(str(EXTRACT), 512)
    assert len(jobs) == 400 and set(Counter(job.num_gpus for job in jobs)) == {1, 2, 4, 8, 16}
    assert jobs[0] == TraceJob(22933.0, 2813.0, 1, jobs[0].tenant)


def test_columns_come_in_any_order_with_others_among_them_after_a_mark_and_before_empty_lines(tmp_path: Path) -> None:
    text = (
        "\ufefftenant, priority ,colour,num_gpus,duration_s,submit_s\r\na,-2,red,4.0,1.5,0\r\nb,,blue,1,2,1e1\r\n\r\n"
    )
    jobs = read_trace(written(tmp_path, text), None)
    assert jobs == (TraceJob(0.0, 1.5, 4, "a", -2), TraceJob(10.0, 2.0, 1, "b", 0))


def test_gzipped_trace_is_read(tmp_path: Path) -> None:
    path = written(tmp_path, gzip.compress(f"{HEAD}0,1,1,a\n".encode()), "trace.csv.gz")
    assert read_trace(path, 1) == (TraceJob(0.0, 1.0, 1, "a"),)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("-1,5,1,a", "submit_s must be at least 0, but is -1"),
        ("nan,5,1,a", "submit_s is not a number: nan"),
        ("soon,5,1,a", "submit_s is not a number: soon"),
        (",5,1,a", "submit_s is empty"),
        ("1_0,5,1,a", "submit_s is not a number: 1_0"),
        ("17e11,5,1,a", "submit_s 1.7e+12 is more than 1e+11 s; are these milliseconds?"),
        ("1,-5,1,a", "duration_s must be above 0, but is -5"),
        ("1,0,1,a", "duration_s must be above 0"),
        ("1,inf,1,a", "duration_s is not a number: inf"),
        ("1,5,0,a", "num_gpus must be a whole number of at least 1, but is 0"),
        ("1,5,1.5,a", "num_gpus must be a whole number of at least 1, but is 1.5"),
        ("1,5,two,a", "num_gpus is not a number: two"),
        ("1,5,40,a", "needs 40 GPUs, but the cluster has 32"),
        ("1,5,1,  ", "tenant is empty"),
        ("1,5,1", "has 3 fields, the first line has 4"),
        ("1,5,1,a,b", "has 5 fields, the first line has 4"),
        ("0.2,5,1,a", "submitted at 0.2 s, before line 2 (0.5 s)"),
        ("x,-1,1,", "submit_s is not a number: x; duration_s must be above 0, but is -1; tenant is empty"),
    ],
)
def test_bad_row_is_told_by_line_and_reason(tmp_path: Path, row: str, reason: str) -> None:
    message = refusal(tmp_path, f"{HEAD}0.5,1,1,a\n{row}\n")
    assert "has 1 bad row, and" in message and f"  line 3: {reason}" in message


def test_bad_priority_is_told(tmp_path: Path) -> None:
    text = "priority,submit_s,duration_s,num_gpus,tenant\n0.5,0,1,1,a\n"
    assert "line 2: priority must be a whole number, but is 0.5" in refusal(tmp_path, text)


def test_five_bad_rows_are_told_and_the_others_counted(tmp_path: Path) -> None:
    message = refusal(tmp_path, HEAD + "0,1,99,a\n" * 1200)
    assert "has 1,200 bad rows" in message and message.count("  line ") == 5 and "and 1,195 more" in message


def test_order_of_rows_is_mended_by_sorting(tmp_path: Path) -> None:
    assert "To correct their order, sort the rows" in refusal(tmp_path, f"{HEAD}5,1,1,a\n4,1,1,a\n")
    assert "Sorting" not in refusal(tmp_path, f"{HEAD}5,1,1,\n")


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("", ["is empty", "submit_s, duration_s, num_gpus, tenant"]),
        ("\n0,1,1,a\n", ["begins with an empty line"]),
        (HEAD, ["has no jobs"]),
        ("submit_s,num_gpus\n0,1\n", ["lacks the columns duration_s, tenant", "found: submit_s, num_gpus"]),
        ("submit_s;duration_s;num_gpus;tenant\n", ["lacks", "found: submit_s;duration_s;num_gpus;tenant"]),
        ("submit_s,submit_s,duration_s,num_gpus,tenant\n", ["more than one column submit_s"]),
        (b"\x93\xfa\x00\x01\x02", ["not a text file"]),
        (b"\x00\x01\x02\x03", ["not a text file", "zero bytes"]),
        (b"\x1f\x8brubbish", ["not a text file"]),
    ],
)
def test_file_that_is_no_trace_is_told_what_one_is(tmp_path: Path, content: str | bytes, parts: list[str]) -> None:
    message = refusal(tmp_path, content)
    assert "trace.csv" in message and [part for part in parts if part not in message] == []


def test_field_without_end_is_told(tmp_path: Path) -> None:
    limit = csv.field_size_limit(1000)
    try:
        assert "not a CSV file: line 2" in refusal(tmp_path, HEAD + "9" * 2000)
    finally:
        csv.field_size_limit(limit)


def test_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"the trace cannot be read: .*gone\.csv: no such file"):
        read_trace(str(tmp_path / "gone.csv"), None)
