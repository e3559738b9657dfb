"""What a caller may see, by role and tenant."""

from __future__ import annotations

import pytest

from orchestrator.queue.records import Role
from orchestrator.service.context.caller import ANYBODY, Caller


@pytest.mark.parametrize(
    ("caller", "sees_all", "sees_a", "has_a_list"),
    [
        (ANYBODY, True, True, True),
        (Caller("all", Role.VIEWER), True, True, True),
        (Caller("vera", Role.VIEWER, "a"), False, True, True),
        (Caller("anna", Role.MEMBER, "a"), False, True, True),
        (Caller("bert", Role.MEMBER, "b"), False, False, True),
        (Caller("nobody", Role.MEMBER), False, False, False),
    ],
)
def test_what_a_caller_sees_follows_from_its_role_and_tenant(
    caller: Caller, sees_all: bool, sees_a: bool, has_a_list: bool
) -> None:
    assert (caller.sees_all, caller.may_see("a"), caller.may_look("a")) == (sees_all, sees_a, sees_a)
    assert caller.may_look(None) is has_a_list
