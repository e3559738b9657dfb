"""What a server says about its tokens and its store before it starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.errors import InputError
from orchestrator.queue.records import Role
from orchestrator.server.process import Options, check_tokens
from orchestrator.service import tokens
from orchestrator.store import label_of, open_store

HOME = Path("/srv/home")
NOW_S = 1_800_000_000.0
OPEN, LOOPBACK = Options(host="0.0.0.0"), Options()


def test_a_server_that_others_reach_needs_a_token_and_starts_with_an_expired_one() -> None:
    store = open_store("sqlite://")
    assert check_tokens(LOOPBACK, HOME, store, NOW_S) == ""
    with pytest.raises(InputError, match=r"tokens add NAME --role admin --store /srv/home/queue.db$"):
        check_tokens(OPEN, HOME, store, NOW_S)
    tokens.add(store, "root", Role.ADMIN, None, NOW_S, "test", lifetime_s=10.0)
    for options in (OPEN, LOOPBACK):
        assert check_tokens(options, HOME, store, NOW_S + 9.0) == ""
        warning = check_tokens(options, HOME, store, NOW_S + 11.0)
        assert "no token of an admin is valid any more" in warning and "tokens add NAME --role admin" in warning
    tokens.revoke(store, "root", NOW_S, "test")
    with pytest.raises(InputError, match="anybody could reach this server"):
        check_tokens(OPEN, HOME, store, NOW_S)
    store.close()


@pytest.mark.parametrize("url", ["postgresql://queue:Sekret@db/queue", "postgresql://queue@db/queue?password=Sekret"])
def test_a_password_of_the_store_is_in_no_line_of_the_start(url: str) -> None:
    assert label_of(url) == "postgresql://queue@db/queue"
    store = open_store("sqlite://")
    with pytest.raises(InputError, match=r"--store URL$"):
        check_tokens(Options(host="0.0.0.0", store=url), HOME, store, NOW_S)
    store.close()
