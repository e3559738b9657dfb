"""Parts of logs and of metrics: whole lines, whole characters, nothing twice, nothing lost, nothing of others."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.backend import Launch
from cluster.errors import StorageError, StorageOutage
from cluster.testing import FakeBackend, FakeClock, FakeCluster
from orchestrator.api import MetricsPart
from orchestrator.queue.errors import QueueError, UnknownSource
from orchestrator.queue.records import Job
from orchestrator.queue.states import State
from orchestrator.queue.tenants import Restrictions, Tenant
from orchestrator.service.context.context import ServiceContext
from orchestrator.service.observability import logs
from orchestrator.service.observability.logs import END_BYTES
from orchestrator.service.observability.scrub import Scrubber
from tests.support.queuejobs import job

SECRET = "sup3rsecretvalue-xyz"
SCRUB = Scrubber([SECRET])


class NoStore:
    """Nothing but its tenants is asked for."""

    def __init__(self, *tenants: Tenant) -> None:
        self._tenants = list(tenants)

    def tenants(self) -> list[Tenant]:
        return self._tenants


def context(backend: FakeBackend | None = None, tenants: Sequence[Tenant] = ()) -> ServiceContext:
    clock = FakeClock()
    return ServiceContext(NoStore(*tenants), backend or FakeBackend(FakeCluster(clock=clock)), clock)  # type: ignore[arg-type]


def with_log(folder: Path, content: bytes, name: str = "driver.log", state: State = State.RUNNING) -> Job:
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    (folder / "logs" / name).write_bytes(content)
    return replace(job(state=state), run=str(folder), attempt=1)


def whole(context: ServiceContext, of: Job, source: str = "driver") -> tuple[str, int]:
    """All of a log, and in how many parts."""
    text, after = "", 0
    for number in range(1, 10_000):
        part = logs.part(context, of, source, after, SCRUB)
        text, before, after = text + part.text, after, part.next
        if part.ended:
            return text, number
        assert after > before
    raise AssertionError("it does not end")


@pytest.mark.parametrize("after", range(30))
def test_from_whichever_byte_one_reads_no_part_of_a_secret_is_shown(tmp_path: Path, after: int) -> None:
    of = with_log(tmp_path, f"\N{SNOWMAN} key {SECRET} end\n".encode(), state=State.FAILED)
    begun, text = len("\N{SNOWMAN} key ".encode()), logs.part(context(), of, "driver", after, SCRUB).text
    if after < begun + len(SECRET):
        assert text.endswith("*** end\n") and SECRET[-4:] not in text
    else:
        assert text == " end\n"[after - begun - len(SECRET) :]


@pytest.mark.parametrize("shift", range(40))
def test_the_last_part_of_a_log_begins_with_a_line_and_shows_no_part_of_a_secret(tmp_path: Path, shift: int) -> None:
    head, line = b"." * shift + b"\n", f"{SECRET} \N{SNOWMAN}\n".encode()
    count = END_BYTES // len(line) + 100
    content = head + line * count
    last = logs.part(context(), with_log(tmp_path, content, state=State.FAILED), "driver", None, SCRUB)
    assert last.ended and last.next == len(content) and last.begin is not None
    assert set(last.text.splitlines()) == {"*** \N{SNOWMAN}"}
    assert content[last.begin - 1 : last.begin] == b"\n" and 0 <= END_BYTES - (last.next - last.begin) < len(line)


@pytest.mark.parametrize(
    ("content", "begin", "text"),
    [
        (b"", 0, ""),
        (b"one\ntwo", 0, "one\ntwo"),
        (b"x" * (END_BYTES + 5), 5, "x" * END_BYTES),  # one line that is longer than a part
        (b"x" * (END_BYTES + 5) + b"\n", 6, "x" * (END_BYTES - 1) + "\n"),
        (b"begun\n" + b"y" * (END_BYTES - 1) + b"\n", 6, "y" * (END_BYTES - 1) + "\n"),
    ],
)
def test_the_last_part_of_odd_logs(tmp_path: Path, content: bytes, begin: int, text: str) -> None:
    last = logs.part(context(), with_log(tmp_path, content, state=State.FAILED), "driver", None, SCRUB)
    assert (last.begin, last.text, last.next, last.ended) == (begin, text, len(content), True)


def test_what_is_written_behind_the_last_part_follows(tmp_path: Path) -> None:
    content = b"a line\n" * 50_000 + b"begun"
    last = logs.part(context(), with_log(tmp_path, content), "driver", None, SCRUB)
    assert last.text.endswith("a line\n") and not last.ended and last.next == len(content) - 5
    more = logs.part(context(), with_log(tmp_path, content + b" and over\n"), "driver", last.next, SCRUB)
    assert more.text == "begun and over\n"


@pytest.mark.parametrize("secret", [SECRET, "hunter2-hunter2", "-----a-----b-----"])
def test_a_secret_that_is_being_written_is_shown_in_no_part(tmp_path: Path, secret: str) -> None:
    scrub, shown, after = Scrubber([secret, "-----a-----"]), "", 0
    for written in range(len(secret) + 1):
        of = with_log(tmp_path, f"key {secret[:written]}".encode())
        part = logs.part(context(), of, "driver", after, scrub)
        shown, after = shown + part.text, part.next
    of = with_log(tmp_path, f"key {secret} end\n".encode(), state=State.FAILED)
    assert shown + logs.part(context(), of, "driver", after, scrub).text == f"key {secret[:3]}*** end\n"


@pytest.mark.parametrize("secret", [SECRET, "hunter2-hunter2", "-----a-----b-----"])
def test_a_whole_secret_at_the_end_of_what_is_written_is_not_cut(tmp_path: Path, secret: str) -> None:
    scrub, of = Scrubber([secret]), with_log(tmp_path, f"key {secret}".encode())
    first = logs.part(context(), of, "driver", 0, scrub)
    of = with_log(tmp_path, f"key {secret} end\n".encode(), state=State.FAILED)
    assert first.text + logs.part(context(), of, "driver", first.next, scrub).text == "key *** end\n"


@pytest.mark.parametrize(
    ("outcome", "failed"),
    [
        (b'{"status": "failed", "rank": 1, "ended_at": "2026-11-27T12:00:00Z"}', "rank-1"),
        (b'{"status": "failed", "rank": 7, "ended_at": "2026-11-27T12:00:00Z"}', None),  # it has no log
        (b'{"status": "failed", "ended_at": "2026-11-27T12:00:00Z"}', None),  # of an earlier release
        (b'{"status": "failed", "version": 99}', None),
        (b"[]", None),
        (b"{", None),
        (None, None),
    ],
)
def test_the_log_of_the_rank_that_failed_is_named(tmp_path: Path, outcome: bytes | None, failed: str | None) -> None:
    for name in ("driver.log", "rank-0.log", "rank-1.log"):
        of = with_log(tmp_path, b"", name, State.FAILED)
    if outcome is not None:
        (tmp_path / "outcome.json").write_bytes(outcome)
    assert logs.sources(context(), of).failed == failed
    assert logs.sources(context(), replace(of, state=State.RUNNING)).failed is None


def test_the_logs_of_a_run_and_the_output_of_each_attempt_are_sources(tmp_path: Path) -> None:
    for name in ("rank-0.log", "notes.txt", ".hidden.log", "a b.log"):
        of = with_log(tmp_path, b"", name)
    (tmp_path / "logs" / "driver.log").write_text("")
    assert logs.sources(context(), replace(of, attempt=3)).sources == (
        "output", "output-1", "output-2", "driver", "rank-0",
    )  # fmt: skip
    assert logs.sources(context(), replace(of, run=None, attempt=0)).sources == ()


def test_a_part_ends_with_a_line_while_more_may_come(tmp_path: Path) -> None:
    of = with_log(tmp_path, b"erste\nzweite, hal")
    part = logs.part(context(), of, "driver", 0, SCRUB)
    assert (part.text, part.next, part.ended) == ("erste\n", 6, False)
    part = logs.part(context(), replace(of, state=State.SUCCEEDED), "driver", 6, SCRUB)
    assert (part.text, part.next, part.ended) == ("zweite, hal", 17, True)


@pytest.mark.parametrize("unit", ["x" * 79 + "\n", "ä€😀" * 30_000 + "\n", "😀", "\n", "é" * 7])
def test_all_parts_together_are_the_log(tmp_path: Path, unit: str) -> None:
    text = unit * (2_500_000 // len(unit.encode()) + 1)
    of = with_log(tmp_path, text.encode(), state=State.FAILED)
    found, parts = whole(context(), of)
    assert found == text
    assert 3 <= parts <= 5


def test_bytes_that_are_no_text_are_shown_as_such(tmp_path: Path) -> None:
    of = with_log(tmp_path, b"\xff\xfe\x80" * 3 + b"\xf0\x9f", state=State.FAILED)
    found, _ = whole(context(), of)
    assert set(found) == {"\N{REPLACEMENT CHARACTER}"}


def test_half_a_character_waits_for_its_other_half(tmp_path: Path) -> None:
    of = with_log(tmp_path, "aé".encode()[:-1])
    part = logs.part(context(), of, "driver", 0, SCRUB)
    assert (part.text, part.next) == ("a", 1)


@pytest.mark.parametrize("after", [10**12, 2**63 - 1])
def test_behind_the_end_there_is_nothing_yet(tmp_path: Path, after: int) -> None:
    of = with_log(tmp_path, b"short\n")
    part = logs.part(context(), of, "driver", after, SCRUB)
    assert (part.text, part.next, part.ended) == ("", after, False)


@pytest.mark.parametrize(
    "source", ["../secret", "..", "secret", "driver.log", "", "/etc/passwd", "rank-0/../../secret", "output-2", "out\0"]
)
def test_nothing_but_a_listed_log_is_read(tmp_path: Path, source: str) -> None:
    of = with_log(tmp_path / "run", b"x")
    (tmp_path / "secret.log").write_text("secret")
    (tmp_path / "run" / "secret.log").write_text("secret")
    with pytest.raises(UnknownSource):
        logs.part(context(), of, source, 0, SCRUB)


def test_a_link_out_of_the_run_is_not_followed(tmp_path: Path) -> None:
    of = with_log(tmp_path / "run", b"x")
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "run" / "logs" / "evil.log").symlink_to(tmp_path / "secret")
    with pytest.raises(StorageError, match="cannot read"):
        logs.part(context(), of, "evil", 0, SCRUB)


@pytest.mark.parametrize(("number", "kind"), [(errno.ESTALE, StorageOutage), (errno.EIO, StorageError)])
def test_a_run_that_cannot_be_listed_now_is_not_one_without_logs(
    number: int, kind: type[StorageError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object) -> list[str]:
        raise OSError(number, os.strerror(number))

    of = with_log(tmp_path, b"x")
    (tmp_path / "metrics").mkdir()
    monkeypatch.setattr(os, "listdir", broken)
    for ask in (lambda: logs.sources(context(), of), lambda: logs.metrics(context(), of, 0)):
        with pytest.raises(StorageError, match=f"cannot list {tmp_path}/") as caught:
            ask()
        assert type(caught.value) is kind
    monkeypatch.setattr(os, "listdir", lambda _: (_ for _ in ()).throw(PermissionError(errno.EACCES, "no")))
    assert logs.sources(context(), of).sources == ("output",)


def test_the_output_of_an_attempt_is_read_from_the_backend() -> None:
    backend = FakeBackend()
    backend.script("*", output=b"one\ntwo\n")
    backend.start(Launch("job-1", ("true",)), 1)
    backend.advance(1000.0)
    of = replace(job(state=State.RUNNING), attempt=2)
    part = logs.part(context(backend), of, "output-1", 4, SCRUB)
    assert (part.text, part.next, part.ended) == ("two\n", 8, True)
    part = logs.part(context(backend), of, "output-1", None, SCRUB)
    assert (part.text, part.begin, part.ended) == ("one\ntwo\n", 0, True)
    for after in (0, None):
        part = logs.part(context(backend), of, "output", after, SCRUB)
        assert (part.text, part.ended) == ("", False)


def test_metrics_are_counted_over_all_parts(tmp_path: Path) -> None:
    folder = tmp_path / "metrics"
    folder.mkdir()
    for file in range(30):
        lines = [json.dumps({"step": 100 * file + at, "loss": "NaN" if at else math.nan}) for at in range(100)]
        (folder / f"{file:020d}-0.jsonl").write_text("\n".join(lines) + "\n")
    of = replace(job(state=State.RUNNING), run=str(tmp_path))
    found, after = list[dict[str, Any]](), 0
    while (part := logs.metrics(context(), of, after)).records:
        assert len(part.records) <= 1000
        found += part.records
        after = part.next
    assert [record["step"] for record in found] == list(range(3000))
    first = MetricsPart.model_validate_json(logs.metrics(context(), of, 0).model_dump_json())
    assert {record["loss"] for record in first.records} == {None}  # JSON has no NaN
    assert logs.metrics(context(), of, 2950).records[0]["step"] == 2950
    assert logs.metrics(context(), replace(of, run=None), 5).next == 5


def test_whatever_lies_in_a_run_in_the_place_of_a_file_is_not_read(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir()
    (private / "driver.log").write_text("private")
    record = json.dumps({"step": 1, "private": True})
    (private / f"{0:020d}-0.jsonl").write_text(record)
    runs = tmp_path / "runs"
    linked, strange, large = runs / "linked", runs / "strange", runs / "large"
    for run in (linked, strange / "logs", strange / "metrics", large / "metrics"):
        run.mkdir(parents=True)
    (linked / "logs").symlink_to(private)
    (linked / "metrics").symlink_to(private)
    (runs / "all").symlink_to(linked)
    os.mkfifo(strange / "logs" / "driver.log")
    (strange / "metrics" / f"{0:020d}-0.jsonl").symlink_to("/dev/zero")
    with open(large / "metrics" / f"{0:020d}-0.jsonl", "wb") as file:
        file.truncate(700 << 20)
    for run in (linked, runs / "all"):
        of = replace(job(state=State.RUNNING), run=str(run), attempt=1)
        assert logs.sources(context(), of).sources == ("output",)
        assert logs.metrics(context(), of, 0).records == ()
    of = replace(job(state=State.RUNNING), run=str(strange), attempt=1)
    with pytest.raises(StorageError, match="is not a regular file"):
        logs.part(context(), of, "driver", 0, SCRUB)
    with pytest.raises(StorageError, match="cannot read"):
        logs.metrics(context(), of, 0)
    with pytest.raises(StorageError, match="larger than any part"):
        logs.metrics(context(), replace(of, run=str(large)), 0)


def test_the_folder_of_runs_may_be_reached_by_a_link(tmp_path: Path) -> None:
    with_log(tmp_path / "disk" / "run", b"a line\n")
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    of = replace(job(state=State.RUNNING), run=str(tmp_path / "runs" / "run"), attempt=1)
    assert logs.part(context(), of, "driver", 0, SCRUB).text == "a line\n"


def test_a_run_outside_of_the_roots_of_its_tenant_is_not_read(tmp_path: Path) -> None:
    """Below the roots no link is followed, also above the run."""
    own, other = tmp_path / "own", tmp_path / "other"
    of = with_log(other / "runs" / "run", b"private\n")
    own.mkdir()
    (own / "link").symlink_to(other / "runs")
    known = context(tenants=[Tenant(of.tenant, restrictions=Restrictions(roots=(str(own),)))])
    for act in (lambda job: logs.part(known, job, "driver", 0, SCRUB), lambda job: logs.metrics(known, job, 0)):
        with pytest.raises(QueueError, match="its tenant may use only paths under"):
            act(of)
    assert logs.sources(known, replace(of, run=str(own / "link" / "run"))).sources == ("output",)
    inside = with_log(own / "runs" / "run", b"mine\n")
    assert logs.part(known, inside, "driver", 0, SCRUB).text == "mine\n"
