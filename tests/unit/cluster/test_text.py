"""What programs and errors have said is told to people in one line."""

from __future__ import annotations

import pytest

from cluster.text import error_line, one_line


@pytest.mark.parametrize(
    ("tail", "said"),
    [
        ("2026-11-25 14:00:00Z error: there is no program x on the PATH\n", "there is no program x on the PATH"),
        ("2026-11-25 14:00:00Z failed: the loss of step 3 is nan\nlogs: /runs/a/logs\n", "the loss of step 3 is nan"),
        ("error: first\nwords\nerror: last\n[0] goodbye\n", "last"),
        ("it is no error: at all\n[1] error: of the user's own program\nerror: \n", ""),
        ("", ""),
        ("error: " + "x" * 9000, "x" * 500),
    ],
)
def test_the_last_error_of_the_driver_itself_is_what_it_has_said(tail: str, said: str) -> None:
    assert error_line(tail) == said


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("no such cluster\nTry another one"), "no such cluster"),
        (ConnectionError(), "ConnectionError"),
        (ValueError(" \n"), "ValueError"),
        ("\nTraceback (most recent call last):\n  in f\nOSError: x\n", "OSError: x"),
        ("", ""),
        ("x" * 9000, "x" * 500),
    ],
)
def test_an_error_is_its_first_line_and_never_nothing(error: Exception | str, said: str) -> None:
    assert one_line(error) == said
