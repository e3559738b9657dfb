"""Tenants, node rules, tokens and facts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from orchestrator.queue.errors import NameTaken, UnknownToken
from orchestrator.queue.records import NodeOrder, NodeRule, QueueEvent, Token
from orchestrator.queue.tenants import Tenant
from orchestrator.store import events as history
from orchestrator.store.counters import take
from orchestrator.store.database.rows import node_rule_of, tenant_of, tenant_values, token_of, unreadable_tenant
from orchestrator.store.database.schema import FACTS, NODE_RULES, TENANTS, TOKENS
from orchestrator.store.database.unreadable import records_of

_TENANTS = select(TENANTS).order_by(TENANTS.c.number)
_TENANT = select(TENANTS).where(TENANTS.c.name == bindparam("name"))
_NODE_RULES = select(NODE_RULES).order_by(NODE_RULES.c.number)
_TOKENS = select(TOKENS).order_by(TOKENS.c.number)


def tenants(connection: Connection) -> list[Tenant]:
    rows = connection.execute(_TENANTS).all()
    found = {tenant.name: tenant for tenant in records_of(connection, "tenant", rows, tenant_of, is_all=True)}
    return [found.get(row.name) or unreadable_tenant(row) for row in rows]


def tenant(connection: Connection, name: str) -> Tenant | None:
    row = connection.execute(_TENANT, {"name": name}).one_or_none()
    if row is None:
        return None
    return next(iter(records_of(connection, "tenant", [row], tenant_of)), None) or unreadable_tenant(row)


def put_tenant(connection: Connection, tenant: Tenant, now_s: float) -> None:
    change_tenant(connection, tenant.name, lambda before: tenant, now_s)


def change_tenant(
    connection: Connection, name: str, change: Callable[[Tenant | None], Tenant], now_s: float
) -> tuple[Tenant | None, Tenant]:
    numbers = take(connection, changes=1)
    before = tenant(connection, name)
    after = change(before)
    values = {**tenant_values(after), "changed_s": now_s}
    if before is None:
        connection.execute(insert(TENANTS), {**values, "number": numbers.change + 1})
    else:
        connection.execute(update(TENANTS).where(TENANTS.c.name == name).values(values))
    return before, after


def node_rules(connection: Connection) -> list[NodeRule]:
    return records_of(connection, "node-rule", connection.execute(_NODE_RULES), node_rule_of, is_all=True)


def put_node_rule(connection: Connection, rule: NodeRule) -> None:
    numbers = take(connection, changes=1)
    connection.execute(delete(NODE_RULES).where(NODE_RULES.c.node_id == rule.node_id))
    if rule.order is not NodeOrder.USE:
        values = {**asdict(rule), "number": numbers.change + 1, "order": rule.order.value}
        connection.execute(insert(NODE_RULES), values)


def tokens(connection: Connection) -> list[Token]:
    return records_of(connection, "token", connection.execute(_TOKENS), token_of, is_all=True)


def add_token(connection: Connection, token: Token, event: QueueEvent | None = None) -> None:
    events = [event] if event is not None else []
    numbers = take(connection, changes=1, events=len(events))
    if connection.execute(select(TOKENS.c.name).where(TOKENS.c.name == token.name)).first():
        raise NameTaken(f"there is, or was, a token {token.name!r}: give this one another name")
    values = {**asdict(token), "number": numbers.change + 1, "role": token.role.value}
    connection.execute(insert(TOKENS), values)
    history.add(connection, events, numbers.event)


def revoke_token(connection: Connection, name: str, now_s: float, event: QueueEvent | None = None) -> None:
    events = [event] if event is not None else []
    numbers = take(connection, events=len(events))
    row = connection.execute(select(TOKENS.c.revoked_s).where(TOKENS.c.name == name)).one_or_none()
    if row is None:
        raise UnknownToken(f"there is no token {name!r}")
    if row.revoked_s is None:
        connection.execute(update(TOKENS).where(TOKENS.c.name == name).values(revoked_s=now_s))
    history.add(connection, events, numbers.event)


def all_facts(connection: Connection) -> Mapping[str, str]:
    return {str(name): str(value) for name, value in connection.execute(select(FACTS.c.name, FACTS.c.value))}


def put_facts(
    connection: Connection, facts: Mapping[str, str], *, keep: bool = False, epoch: int | None = None
) -> None:
    take(connection, epoch=epoch)
    if keep:
        there = all_facts(connection)
        facts = {name: value for name, value in facts.items() if name not in there}
    connection.execute(delete(FACTS).where(FACTS.c.name.in_(list(facts))))
    if facts:
        connection.execute(insert(FACTS), [{"name": name, "value": value} for name, value in facts.items()])
