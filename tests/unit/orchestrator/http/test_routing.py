"""Which rows that are set aside are named, and to whom."""

from __future__ import annotations

from orchestrator.http.routing import named
from orchestrator.queue.records import Role, UnreadableRow
from orchestrator.service.context.caller import Caller


def test_an_admin_sees_all_rows_that_are_set_aside_and_a_member_the_own_jobs() -> None:
    rows = (
        UnreadableRow("job", "plan-aaaaaa", "a", "bad"),
        UnreadableRow("job", "plan-bbbbbb", "b", "bad"),
        UnreadableRow("tenant", "b", None, "bad"),
    )
    assert list(named(rows, Caller("anna", Role.MEMBER, "a"))) == ["plan-aaaaaa: bad"]
    assert list(named(rows, Caller("root", Role.ADMIN))) == ["plan-aaaaaa: bad", "plan-bbbbbb: bad", "tenant b: bad"]
