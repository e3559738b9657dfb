"""Why a request was refused: the body of every answer that is no success."""

from __future__ import annotations

from orchestrator.api import Response


class ProblemItem(Response):
    """One mistake in what was sent.

    Attributes:
        spec: number of the spec in its submission, from 1 on; null: there is only one, or the mistake is in none.
        field: dotted name; empty: the mistake is in no single field.
        message: for people, without the name of the field.
    """

    spec: int | None = None
    field: str = ""
    message: str


class Problem(Response):
    """Why it was refused, and what to do.

    Attributes:
        error: name of the exception's class (`UnknownJob`, `SpecError`, ...).
        message: for people: all items, one a line.
        queue: id of the queue whose server answers.
        items: the mistakes, for programs; empty where no field is to blame, and from servers before this field.
        meant: of an unknown job, the ids that were perhaps meant.
    """

    error: str
    message: str
    queue: str = ""
    items: tuple[ProblemItem, ...] = ()
    meant: tuple[str, ...] = ()
