"""What a store keeps beside the jobs: events, tenants, orders on nodes, tokens, facts."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from orchestrator.queue.errors import NameTaken, NotLeader, TenantChanged, UnknownToken
from orchestrator.queue.records import NodeOrder, NodeRule, QueueEvent, Role, Token
from orchestrator.queue.store import Store
from orchestrator.queue.tenants import Tenant
from tests.support.stores import START_S, lead, submit

TOKEN = Token("anna", "ab12", Role.MEMBER, "a", START_S)


def test_events_are_given_numbers_and_read_in_their_order(store: Store) -> None:
    job = submit(store)
    told = [
        QueueEvent(START_S + 2.0, "node", "n0 is gone", data={"node": "n0", "gpus": [1, None], "x": float("inf")}),
        QueueEvent(START_S + 1.0, "note", "a line", job.job_id),
    ]
    store.add_events(told)
    store.add_events([])
    first, *rest = store.events()
    assert [replace(event, number=0) for event in rest] == told
    assert first.number < rest[0].number < rest[1].number
    assert store.events(job.job_id) == [first, rest[1]]
    assert store.events(after=first.number, limit=1) == [rest[0]]
    assert store.events(job.job_id, after=rest[1].number) == []
    assert store.events("gone") == [] == store.events("gone", before=9)
    last = rest[1].number
    assert store.events(before=last + 1) == [*reversed(rest), first]
    assert store.events(before=last, limit=1) == [rest[0]]
    assert store.events(before=last, after=first.number) == [rest[0]]
    assert store.events(job.job_id, before=last) == [first]


def test_tenants_are_made_and_changed_in_place(store: Store) -> None:
    rich = Tenant("rich", 2.5, ((None, 8), ("H100", 4)), (("H100", 16),))
    store.put_tenant(rich, START_S)
    assert store.tenants() == [Tenant("a"), Tenant("b"), rich]
    store.put_tenant(replace(rich, name="a"), START_S - 5.0)
    assert store.tenants() == [replace(rich, name="a"), Tenant("b"), rich]


def test_changes_of_a_tenant_at_the_same_time_all_count(store: Store) -> None:
    def heavier(before: Tenant | None) -> Tenant:
        assert before is not None
        return replace(before, weight=before.weight + 1.0)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: store.change_tenant("a", heavier, START_S), range(8)))
    assert store.tenants() == [Tenant("a", 9.0), Tenant("b")]
    assert sorted(after.weight for _, after in found) == [float(weight) for weight in range(2, 10)]
    assert store.change_tenant("new", lambda before: Tenant("new", 2.0), START_S) == (None, Tenant("new", 2.0))


def test_a_change_of_a_tenant_that_fails_writes_nothing(store: Store) -> None:
    def refused(before: Tenant | None) -> Tenant:
        raise TenantChanged("no")

    with pytest.raises(TenantChanged):
        store.change_tenant("a", refused, START_S)
    assert store.tenants() == [Tenant("a"), Tenant("b")]


def test_an_order_on_a_node_takes_the_place_of_the_one_before(store: Store) -> None:
    cordon = NodeRule("n0", NodeOrder.CORDON, "anna", "noisy fan", START_S)
    drain = NodeRule("n1", NodeOrder.DRAIN, "anna", "", START_S + 1.0, START_S + 7200.0)
    for rule in (cordon, drain):
        store.put_node_rule(rule)
    assert store.node_rules() == [cordon, drain]
    store.put_node_rule(replace(cordon, order=NodeOrder.DRAIN))
    assert store.node_rules() == [drain, replace(cordon, order=NodeOrder.DRAIN)]
    for node_id in ("n1", "n1", "n2"):
        store.put_node_rule(NodeRule(node_id, NodeOrder.USE, "anna", "", START_S))
    assert [rule.node_id for rule in store.node_rules()] == ["n0"]


def test_tokens_have_names_that_are_never_used_again(store: Store) -> None:
    admin = Token("root", "cd34", Role.ADMIN, None, START_S)
    for token in (TOKEN, admin):
        store.add_token(token)
    store.revoke_token("anna", START_S + 1.0)
    store.revoke_token("anna", START_S + 2.0)
    assert store.tokens() == [replace(TOKEN, revoked_s=START_S + 1.0), admin]
    with pytest.raises(NameTaken, match="a token 'anna'"):
        store.add_token(replace(TOKEN, digest="ef56"))
    with pytest.raises(UnknownToken, match="there is no token 'bert'"):
        store.revoke_token("bert", START_S)


def test_a_token_and_its_event_are_written_together_or_not_at_all(store: Store) -> None:
    made, revoked = (QueueEvent(START_S, "token", said, data={"token": "anna"}) for said in ("made", "revoked"))
    circle: dict[str, object] = {}
    no_json = replace(made, data={"circle": circle})
    circle["circle"] = circle
    with pytest.raises(ValueError, match="Circular"):
        store.add_token(TOKEN, no_json)
    assert store.tokens() == [] and store.events() == []
    store.add_token(TOKEN, made)
    with pytest.raises(NameTaken):
        store.add_token(TOKEN, made)
    with pytest.raises(ValueError, match="Circular"):
        store.revoke_token("anna", START_S + 1.0, no_json)
    assert store.tokens() == [TOKEN]
    store.revoke_token("anna", START_S + 1.0, revoked)
    with pytest.raises(UnknownToken):
        store.revoke_token("bert", START_S, revoked)
    assert [event.message for event in store.events()] == ["made", "revoked"]


def test_facts_are_kept_by_name(store: Store) -> None:
    assert store.facts() == {}
    store.put_facts({"cluster": "x", "clock": "1"})
    store.put_facts({"clock": "2"})
    store.put_facts({})
    assert store.facts() == {"cluster": "x", "clock": "2"}


def test_facts_of_a_leader_are_refused_once_another_one_leads(store: Store) -> None:
    first = lead(store)
    store.put_facts({"machines": "a"}, epoch=first)
    store.resign("one")
    lead(store, "two")
    with pytest.raises(NotLeader):
        store.put_facts({"machines": "b"}, epoch=first)
    assert store.facts() == {"machines": "a"}
