"""Authentication: from a token to a caller, what a caller may do, and a limit on failures."""

from __future__ import annotations

import hmac
import ipaddress
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from cluster.addresses import is_loopback
from cluster.errors import FleetuneError
from cluster.text import format_time
from orchestrator.queue.errors import Forbidden, QueueError
from orchestrator.queue.records import Token
from orchestrator.queue.store import Store
from orchestrator.service.context.caller import ANYBODY, Caller
from orchestrator.service.tokens import digest_of

_FRESH_S = 1.0  # seconds; how long a token may still be used after another process has revoked it
_LONGEST = 200
MOST: Final = 30  # most failures of one address in a window
WINDOW_S: Final = 60.0
_MOST_KNOWN: Final = 10_000  # addresses
_IPV6_PREFIX: Final = 64  # bits; a host may use all addresses of such a network
_UNREAD: Final = (
    ", and cannot read the tokens that it has: upgrade it to the release that has written them, or make a new one "
    "beside it with fleetune tokens add NAME --role admin --store URL"
)


class NoToken(QueueError):
    """The request shows no valid token."""

    status = 401


class TokenExpired(NoToken):
    """The token has expired."""


class _Known(NamedTuple):
    """What one read has found: tokens that are not revoked, and whether rows of other tokens cannot be read."""

    tokens: Sequence[Token]
    some_unread: bool


class Tokens:
    """The tokens of the store, read again every second.

    Args:
        always: a token is needed even if the store has none, because the server can be reached from other machines.
        now_s: returns the time, for the expiry of tokens.
    """

    def __init__(self, store: Store, always: bool = False, now_s: Callable[[], float] = time.time) -> None:
        self._store, self._always, self._now_s = store, always, now_s
        self._lock = threading.Lock()
        self._known = _Known((), False)
        self._until_s = -1.0

    @property
    def fresh(self) -> bool:
        """Whether `caller` can answer without reading the store."""
        return time.monotonic() < self._until_s

    def read(self) -> None:
        """Read the tokens if they are not fresh. Raises StoreBroken, so that outdated tokens let no one in."""
        with self._lock:
            if not self.fresh:
                began_s = time.monotonic()
                valid = tuple(token for token in self._store.tokens() if token.revoked_s is None)
                self._known = _Known(valid, any(row.table == "token" for row in self._store.unreadable()))
                self._until_s = began_s + _FRESH_S

    def forget(self) -> None:
        """Read the tokens again before the next use."""
        self._until_s = -1.0

    @property
    def needed(self) -> bool:
        """Whether a token is needed, as of the last read.

        Tokens that have expired or cannot be read count: they must not open the server to all.
        """
        return self._always or any(self._known)

    def caller(self, shown: str | None) -> Caller:
        """Return the caller that a token belongs to.

        Raises:
            NoToken: a token is needed, and none is shown, or it is unknown.
            TokenExpired: the token has expired.
        """
        if not self.needed:
            return ANYBODY
        if shown is None:
            raise NoToken(f"this server needs a token{_UNREAD if self._known == ((), True) else ''}")
        given, found = digest_of(shown[:_LONGEST]), None
        for token in self._known.tokens:  # always all of them, for constant time
            if hmac.compare_digest(token.digest, given):
                found = token
        if found is None:
            raise NoToken("the token is not known here, or was revoked: ask an admin for another one")
        if found.has_expired(self._now_s()):
            raise TokenExpired(
                f"the token {found.name!r} expired at {format_time(found.expires_s)}: ask an admin for another one "
                "(fleetune tokens add NAME)"
            )
        return Caller(found.name, found.role, found.tenant)


def bearer(headers: Mapping[str, str]) -> str | None:
    """Return the bearer token of a request; None: there is none."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


def check_at_home(headers: Mapping[str, str]) -> None:
    """Check that a request without tokens comes from a program, and not from a page in a browser.

    A page could make its own name resolve to this machine (then the header Host has that name), or send a cross-site
    request (then Origin has its name).

    Raises:
        Forbidden: the headers have another name.
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


class TooManyFailures(FleetuneError):
    """This address has shown no valid token too often."""

    status = 429

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Failures:
    """Counts failures for each address, or IPv6 network of 64 bits, in windows of a minute. Not thread-safe.

    Only requests without a valid token are counted and refused. Requests with a valid token are always answered:
    otherwise one program could lock out all others behind the same address.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._windows: OrderedDict[str, tuple[int, float]] = OrderedDict()  # address -> (failures, end of the window)

    def check(self, scope: Mapping[str, Any]) -> None:
        """Raise TooManyFailures if this address has failed too often in the current window."""
        address = address_of(scope)
        count, until_s = self._windows.get(address, (0, 0.0))
        left_s = until_s - self._clock()
        if count >= MOST and left_s > 0.0:
            raise TooManyFailures(
                f"{MOST} requests from {address} showed no valid token within {WINDOW_S:.0f} s. Try again in "
                f"{left_s:.0f} s, or with a valid token, which is taken at once",
                left_s,
            )

    def note(self, scope: Mapping[str, Any]) -> None:
        address, now_s = address_of(scope), self._clock()
        count, until_s = self._windows.get(address, (0, 0.0))
        self._windows[address] = (count + 1, until_s) if now_s < until_s else (1, now_s + WINDOW_S)
        if count == 0 or now_s >= until_s:
            self._windows.move_to_end(address)
        while len(self._windows) > _MOST_KNOWN:  # the oldest windows end first
            self._windows.popitem(last=False)


def address_of(scope: Mapping[str, Any]) -> str:
    """Return the address of the peer of the connection; behind a proxy, this is the proxy's.

    A socket for both versions of IP shows an IPv4 address as an IPv6 one, `::ffff:10.0.0.7`.
    """
    client = scope.get("client")
    if not client:
        return "an unknown address"
    try:
        address = ipaddress.ip_address(str(client[0]).partition("%")[0])
    except ValueError:
        return str(client[0])[:100]
    if address.version == 6 and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if address.version == 4:
        return str(address)
    return str(ipaddress.ip_network((address, _IPV6_PREFIX), strict=False))
