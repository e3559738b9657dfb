"""Who asks, and from where."""

from __future__ import annotations

import pytest

from orchestrator.http import auth
from orchestrator.queue.errors import Forbidden
from orchestrator.queue.records import Role, Token
from orchestrator.service import tokens as tokenrules
from orchestrator.service.context.caller import ANYBODY
from orchestrator.store import open_store


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "localhost:8400"},
        {"host": "127.0.0.1:8400", "origin": "http://127.0.0.1:8400"},
        {"host": "[::1]:8400"},
    ],
)
def test_programs_of_this_machine_may_ask_without_a_token(headers: dict[str, str]) -> None:
    auth.check_at_home(headers)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"host": ""},
        {"host": "evil.example:8400"},
        {"host": "[::1"},
        {"host": "localhost@evil.example"},
        {"host": "localhost:8400", "origin": "http://evil.example"},
        {"host": "localhost:8400", "origin": "null"},
        {"host": "localhost:8400", "origin": "http://localhost:3000"},
    ],
)
def test_pages_of_other_sites_may_not(headers: dict[str, str]) -> None:
    with pytest.raises(Forbidden):
        auth.check_at_home(headers)


def test_without_tokens_everybody_is_an_admin_unless_one_is_always_needed() -> None:
    store = open_store("sqlite://")
    at_home, abroad = auth.Tokens(store), auth.Tokens(store, always=True)
    at_home.read()
    abroad.read()
    assert at_home.caller(None) is ANYBODY
    with pytest.raises(auth.NoToken):
        abroad.caller(None)
    store.close()


def test_a_token_is_known_by_its_digest_until_it_is_revoked() -> None:
    store, token = open_store("sqlite://"), tokenrules.new_token()
    store.add_token(Token("anna", tokenrules.digest_of(token), Role.MEMBER, "a", 1.0))
    tokens = auth.Tokens(store)
    tokens.read()
    found = tokens.caller(token)
    assert (found.name, found.role, found.tenant) == ("anna", Role.MEMBER, "a")
    for wrong in (None, "", token[:-1], token + "x", tokenrules.digest_of(token), "\udcff"):
        with pytest.raises(auth.NoToken):
            tokens.caller(wrong)
    store.revoke_token("anna", 2.0)
    tokens.forget()
    assert not tokens.fresh
    tokens.read()
    assert tokens.caller(None) is ANYBODY
    store.close()


def test_a_token_that_has_expired_is_refused_with_its_own_words_and_opens_no_server() -> None:
    store, now = open_store("sqlite://"), [100.0]
    token = tokenrules.add(store, "root", Role.ADMIN, None, now[0], "anna", 50.0)
    tokens = auth.Tokens(store, now_s=lambda: now[0])
    tokens.read()
    assert tokens.caller(token).name == "root"
    now[0] = 150.0
    with pytest.raises(auth.TokenExpired, match="the token 'root' expired at 1970-01-01 00:02:30Z"):
        tokens.caller(token)
    for shown in (None, "ft_x"):
        with pytest.raises(auth.NoToken):
            tokens.caller(shown)
    assert not tokenrules.has_admin(store, now[0])
    store.close()


def test_an_admin_whose_token_has_expired_is_no_other_admin() -> None:
    store = open_store("sqlite://")
    tokenrules.add(store, "old", Role.ADMIN, None, 100.0, "anna", 50.0)
    tokenrules.add(store, "new", Role.ADMIN, None, 120.0, "old")
    tokenrules.check_revocable(store, "new", 149.0)
    with pytest.raises(tokenrules.LastAdmin):
        tokenrules.check_revocable(store, "new", 151.0)
    tokenrules.revoke(store, "old", 151.0, "new")
    assert [event.message for event in store.events() if event.kind == tokenrules.TOKEN] == [
        "anna makes the token old (admin, until 1970-01-01 00:02:30Z)",
        "old makes the token new (admin)",
        "new revokes the token old",
    ]
    store.close()


@pytest.mark.parametrize(
    ("header", "token"),
    [
        ("Bearer abc", "abc"),
        ("bearer  abc ", "abc"),
        ("Basic abc", None),
        ("Bearer", None),
        ("", None),
        ("Bearer ", None),
    ],
)
def test_the_token_of_a_header(header: str, token: str | None) -> None:
    assert auth.bearer({"authorization": header}) == token
