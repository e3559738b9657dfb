"""What is printed while several jobs are asked, also if this ends early."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from cluster.errors import FleetuneError
from orchestrator.api import JobView
from orchestrator.cli.commands.job_actions import order_each
from orchestrator.client.connection import NoServer, TokenRefused
from orchestrator.queue.errors import JobEnded
from orchestrator.queue.states import State
from tests.support.jobviews import job

JOBS = [job(f"a-{number}", State.RUNNING, number=number) for number in range(4)]
REST = "the server has answered for 2 of 4 jobs: repeat the command for the others\n"


def ends_at(number: int, error: BaseException) -> Callable[[JobView], JobView]:
    def order(view: JobView) -> JobView:
        if view.number == number:
            raise error
        return view

    return order


def said(view: JobView) -> str:
    return f"asked ({view.state})"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), NoServer("gone"), TokenRefused("old")], ids=repr)
def test_what_was_done_before_the_end_is_printed(error: BaseException, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(type(error)):
        order_each(JOBS, ends_at(2, error), said, as_json=False)
    assert capsys.readouterr() == ("a-0  asked (running)\na-1  asked (running)\n", REST)
    with pytest.raises(type(error)):
        order_each(JOBS, ends_at(2, error), said, as_json=True)
    printed, errors = capsys.readouterr()
    assert ([one["job_id"] for one in json.loads(printed)], errors) == (["a-0", "a-1"], REST)


def test_each_answer_is_printed_before_the_next_request(capsys: pytest.CaptureFixture[str]) -> None:
    printed = []

    def order(view: JobView) -> JobView:
        printed.append(capsys.readouterr().out)
        return view

    assert order_each(JOBS[:3], order, said, as_json=False) == 0
    assert printed == ["", "a-0  asked (running)\n", "a-1  asked (running)\n"]


@pytest.mark.parametrize("error", [JobEnded("a-1 has ended"), FleetuneError("too busy")])
def test_a_refusal_stops_no_other_request(error: FleetuneError, capsys: pytest.CaptureFixture[str]) -> None:
    assert order_each(JOBS, ends_at(1, error), said, as_json=False) == error.exit_code
    printed, errors = capsys.readouterr()
    assert [line.split()[0] for line in printed.splitlines()] == ["a-0", "a-2", "a-3"]
    assert errors == f"error: {error}\n"
