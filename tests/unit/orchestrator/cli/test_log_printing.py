"""Which lines of a job's logs are printed, and in which order."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cluster.errors import InputError
from orchestrator.api import JobView, LogPart, LogSources
from orchestrator.cli.log_printing import END_LINES, log_end, print_logs
from orchestrator.cli.submission import wait_for
from orchestrator.queue.states import State
from tests.support.jobviews import job

TRACEBACK = "Traceback (most recent call last):\n  here\nValueError: only here\n"
LOGS = {
    "output-1": "step 1/9\ninterrupted\n",
    "output-2": "step 4/9\nfailed: the hardware of rank 1 on n1 failed\n",
    "driver": "warning of a library\n",
    "rank-0": "Loading weights: 100%\n",
    "rank-1": "".join(f"noise {number}\n" for number in range(100)) + TRACEBACK,
}


class Server:
    """Answers what is asked of the logs of one job."""

    def __init__(self, logs: dict[str, str], failed: str | None = None) -> None:
        self._logs, self._failed = logs, failed
        self.seen: JobView | None = None

    def get(self, path: str, kind: Any, parameters: dict[str, Any] | None = None) -> Any:
        if kind is JobView:
            return self.seen
        if kind is LogSources:
            sources = ("output", *(name for name in self._logs if name != "output-2"))
            return LogSources(sources=sources, failed=self._failed)
        text = self._logs[path.rpartition("/")[2]]
        after = (parameters or {}).get("after", 0)
        return LogPart(text=text[after:], next=len(text), ended=True)


def ended(state: State = State.FAILED, **changes: Any) -> JobView:
    return job("a-1", state, **({"attempt": 2, "message": "the hardware of rank 1 on n1 failed"} | changes))


def printed(
    capsys: pytest.CaptureFixture[str],
    view: JobView,
    logs: dict[str, str] = LOGS,
    failed: str | None = "rank-1",
    **asked: Any,
) -> tuple[list[str], str]:
    server = Server(logs, failed)
    server.seen = view
    options = {"follow": False, "source": None, "tail": None, "as_json": False} | asked
    print_logs(server, view, **options)  # type: ignore[arg-type]
    out, errors = capsys.readouterr()
    return out.splitlines(), errors


STORY = ["output | step 1/9", "output | interrupted", "output-2 | step 4/9"]


@pytest.mark.parametrize("follow", [False, True])
def test_a_job_s_story_is_the_output_of_its_attempts_in_their_order(
    capsys: pytest.CaptureFixture[str], follow: bool
) -> None:
    lines, errors = printed(capsys, ended(State.SUCCEEDED), follow=follow)
    assert lines == [*STORY, "output-2 | failed: the hardware of rank 1 on n1 failed"]
    assert (
        errors == "more logs: driver, rank-0, rank-1. To see them: fleetune logs a-1 --source NAME, or --source all\n"
    )


@pytest.mark.parametrize("follow", [False, True])
def test_of_a_job_that_has_failed_the_end_of_the_rank_that_failed_follows(
    capsys: pytest.CaptureFixture[str], follow: bool
) -> None:
    lines, errors = printed(capsys, ended(), follow=follow)
    assert lines[:3] == STORY and lines[4] == "rank-1 | noise 83"
    assert lines[-1] == "rank-1 | ValueError: only here" and len(lines) == 4 + 20
    assert errors.startswith("more logs: driver, rank-0, rank-1. ")
    lines, _ = printed(capsys, ended(), tail=1, follow=follow)
    assert [line.partition(" | ")[0] for line in lines] == ["output", "output-2", "rank-1"]


def test_a_rank_is_not_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    lines, _ = printed(capsys, ended(message="rank 1 on n1 failed"), failed=None)
    assert not [line for line in lines if line.startswith("rank")]
    alone = {name: text for name, text in LOGS.items() if name != "rank-0"}
    lines, _ = printed(capsys, ended(message="ValueError: only here"), alone, None)
    assert lines[-1] == "rank-1 | ValueError: only here"


def test_all_logs_are_printed_where_they_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    lines, errors = printed(capsys, ended(), source="all")
    assert [line.partition(" | ")[0] for line in lines[:6]] == [*["output"] * 2, *["output-2"] * 2, "driver", "rank-0"]
    assert len(lines) == 6 + 103 and errors == ""
    lines, _ = printed(capsys, ended(), source="driver")
    assert lines == ["warning of a library"]


def test_json_has_the_source_and_the_text_of_each_line_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    lines, errors = printed(capsys, ended(), as_json=True, tail=1)
    assert [json.loads(line) for line in lines] == [
        {"source": "output", "text": "interrupted"},
        {"source": "output-2", "text": "failed: the hardware of rank 1 on n1 failed"},
        {"source": "rank-1", "text": "ValueError: only here"},
    ]
    assert errors == ""


def test_a_log_that_is_not_there_is_an_error_once_the_job_has_ended(capsys: pytest.CaptureFixture[str]) -> None:
    only = {"output-1": "hello\n"}
    with pytest.raises(InputError, match="a-1 has no log 'nosuch': there are output, output-1, and all"):
        printed(capsys, ended(attempt=1), only, source="nosuch")
    with pytest.raises(InputError, match=r"a-1 has no log 'rank-7': there are output, output-1, driver, rank-0"):
        printed(capsys, ended(), source="rank-7", as_json=True)
    runs = job("a-1", State.RUNNING, attempt=1)
    assert printed(capsys, runs, only, source="rank-0") == ([], "job a-1 has no log rank-0 yet: it is running\n")
    assert printed(capsys, ended(), LOGS | {"driver": ""}, source="driver") == (
        [], "the log driver of job a-1 is empty\n"
    )  # fmt: skip


def test_no_line_was_asked_for_and_nothing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    for source in ("driver", "output"):
        assert printed(capsys, ended(), tail=0, source=source) == ([], "")


def test_a_command_has_its_output_only(capsys: pytest.CaptureFixture[str]) -> None:
    lines, errors = printed(capsys, ended(attempt=1), {"output-1": "hello\n"})
    assert (lines, errors) == (["output | hello"], "")


BAR = "".join(f"\r{step}/1000" for step in range(1, 1001))
SHOWN = ["1000/1000", "title and reason"]


def test_the_end_of_a_log_is_printed_as_a_terminal_shows_it() -> None:
    log = "".join(f"noise {number}\n" for number in range(50)) + f"{BAR}\n\x1b]0;mine\x07\x1b[2Jtitle and reason\n"
    server: Any = Server({"output": log, "output-1": log})
    first, *lines = log_end(server, ended(attempt=1)).split("\n")
    assert first == "end of output:" and len(lines) == END_LINES and [line[2:] for line in lines[-2:]] == SHOWN
    told = list[str]()
    wait_for(server, [ended(attempt=1)], follow=False, as_json=False, say=told.append)
    assert "\n".join(SHOWN) in told[-1] and "\r" not in told[-1] and "\x1b" not in told[-1]
