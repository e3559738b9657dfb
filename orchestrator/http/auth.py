"""Who asks: from a token to a caller, and what a caller may do."""

from __future__ import annotations

import hmac
import ipaddress
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import urlsplit

from cluster.text import at_words
from orchestrator.queue.errors import Forbidden, QueueError
from orchestrator.queue.records import Role, Token
from orchestrator.queue.store import Store
from orchestrator.service.context.caller import ANYBODY, Caller
from orchestrator.service.tokens import digest_of

_FRESH_S = 1.0  # a token that was revoked by another process may be used for so long
_LONGEST = 200


class NoToken(QueueError):
    """Nobody knows who asks."""

    status = 401


class TokenExpired(NoToken):
    """The token was known here, and its time is over."""


class Tokens:
    """The store's tokens, looked up again every second.

    Args:
        always: a token is needed even where the store has none: the server can be reached from elsewhere.
        now_s: the time, by which tokens expire.
    """

    def __init__(self, store: Store, always: bool = False, now_s: Callable[[], float] = time.time) -> None:
        self._store, self._always, self._now_s = store, always, now_s
        self._lock = threading.Lock()
        self._known: Sequence[Token] = ()
        self._until_s = -1.0

    @property
    def fresh(self) -> bool:
        """Whether `caller` answers without asking the store."""
        return time.monotonic() < self._until_s

    def read(self) -> None:
        """Raises StoreBroken: nobody is let in on what was known once."""
        with self._lock:
            if not self.fresh:
                began_s = time.monotonic()
                self._known = [token for token in self._store.tokens() if token.revoked_s is None]
                self._until_s = began_s + _FRESH_S

    def forget(self) -> None:
        """The next one to ask looks at the store."""
        self._until_s = -1.0

    @property
    def needed(self) -> bool:
        """As of the last look at the store. A token that has expired does not open the server to everybody."""
        return self._always or bool(self._known)

    def caller(self, shown: str | None) -> Caller:
        """
        Raises:
            NoToken: one is needed, and there is none, or one that is not known.
            TokenExpired: it was known until a while ago.
        """
        if not self.needed:
            return ANYBODY
        if shown is None:
            raise NoToken("this server needs a token")
        given, found = digest_of(shown[:_LONGEST]), None
        for token in self._known:  # all of them, however soon it is found
            if hmac.compare_digest(token.digest, given):
                found = token
        if found is None:
            raise NoToken("the token is not known here, or was revoked: ask an admin for another one")
        if found.has_expired(self._now_s()):
            raise TokenExpired(
                f"the token {found.name!r} expired at {at_words(found.expires_s)}: ask an admin for another one "
                "(fleetune tokens add NAME)"
            )
        return Caller.of(found)


def bearer(headers: Mapping[str, str]) -> str | None:
    """The token that was shown, or None."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


def check_writer(caller: Caller) -> None:
    """Raises Forbidden."""
    if caller.role is Role.VIEWER:
        raise Forbidden(f"{caller.name} may look, and change nothing: ask an admin for a token with the role member")


def is_loopback(host: str) -> bool:
    """Of a name or an address, as an option or a header has it."""
    name = host.strip("[]").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def check_at_home(headers: Mapping[str, str]) -> None:
    """Without tokens only programs of this machine may ask, and no page in one of its browsers.

    A page could have its own name lead to this machine (then the header Host has that name), or send its request here
    (then Origin has its name).

    Raises:
        Forbidden: it looks like that.
    """
    host = headers.get("host", "")
    if not is_loopback(_name_of(f"//{host}")):
        raise Forbidden(f"without tokens this server answers only as localhost, and was called {host[:100]!r}")
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2].lower() != host.lower():
        raise Forbidden("without tokens this server answers no pages of other sites")


def _name_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
