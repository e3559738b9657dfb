"""Failed authentications of each address, counted in bounded memory."""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Final

from cluster.errors import FleetuneError

MOST: Final = 30  # most failures of one address in a window
WINDOW_S: Final = 60.0
_MOST_KNOWN: Final = 10_000
_IPV6_PREFIX: Final = 64  # bits; a host may use all addresses of such a network


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
    """Return the address of the peer of the connection; behind a proxy, this is the proxy's."""
    client = scope.get("client")
    if not client:
        return "an unknown address"
    try:
        address = ipaddress.ip_address(str(client[0]).partition("%")[0])
    except ValueError:
        return str(client[0])[:100]
    if address.version == 4:
        return str(address)
    return str(ipaddress.ip_network((address, _IPV6_PREFIX), strict=False))
