"""The body of every answer that reports an error: why a request was refused."""

from __future__ import annotations

from orchestrator.api import Response


class ProblemItem(Response):
    """One mistake in a request.

    Attributes:
        spec: number of the spec in its submission, counted from 1; null: there is only one, or none is to blame.
        field: dotted name of the field; empty: the mistake is in no single field.
        message: for people, without the name of the field.
    """

    spec: int | None = None
    field: str = ""
    message: str


class Problem(Response):
    """Why a request was refused, and what to do.

    Attributes:
        error: name of the exception's class (`UnknownJob`, `SpecError`, ...).
        message: for people; all items, one in each line.
        queue: id of the queue whose server answers.
        items: the mistakes, for programs; empty if no field or spec is wrong, or the server is older than this field.
        meant: ids that were perhaps meant, if the job is unknown.
    """

    error: str
    message: str
    queue: str = ""
    items: tuple[ProblemItem, ...] = ()
    meant: tuple[str, ...] = ()
