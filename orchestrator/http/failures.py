"""How often each address has shown no valid token lately, in bounded memory."""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Final

from cluster.errors import FleetuneError

MOST: Final = 30  # failures of one address within a window
WINDOW_S: Final = 60.0
_MOST_KNOWN: Final = 10_000
_IPV6_PREFIX: Final = 64  # a host has all addresses of such a network


class TooManyFailures(FleetuneError):
    """This address has shown no valid token too often."""

    status = 429

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Failures:
    """Counts failures in windows of a minute for each address, or IPv6 network of 64 bits.

    Only failures are counted and refused: a request with a valid token is answered at once, whatever its address did
    before. Otherwise one program could silence all others behind the same address. Not for several threads.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._windows: OrderedDict[str, tuple[int, float]] = OrderedDict()  # address -> failures, end

    def check(self, scope: Mapping[str, Any]) -> None:
        """Raises TooManyFailures where no more failures of this address are looked at."""
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
        while len(self._windows) > _MOST_KNOWN:  # those that began first are over first
            self._windows.popitem(last=False)


def address_of(scope: Mapping[str, Any]) -> str:
    """Of the other end of the connection: behind a proxy, the proxy's own."""
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
