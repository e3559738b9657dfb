"""Tells Ray's autoscaler what the queue wishes for."""

from __future__ import annotations

import threading
from collections.abc import Callable

from cluster.autoscaler import Autoscaler
from cluster.bundles import in_words
from cluster.errors import BackendUnreachable, MachinesFailed
from orchestrator.queue.growing import Wish

_SHOWN = 3


class Wishing:
    """Called by the leader every few seconds. Telling Ray takes a while: that is done in a thread of its own."""

    def __init__(self, autoscaler: Autoscaler, wish: Callable[[], Wish], say: Callable[[str], None]) -> None:
        self._autoscaler, self._wish, self._say = autoscaler, wish, say
        self._told: Wish | None = None  # None: an earlier server may have wished for something
        self._session = ""
        self._failed = ""
        self._telling: threading.Thread | None = None

    def __call__(self) -> None:
        """Raises BackendUnreachable."""
        if not self._autoscaler.growth().types or (self._telling is not None and self._telling.is_alive()):
            return
        wish = self._wish()
        if self._told is None or wish.bundles != self._told.bundles or self._autoscaler.session() != self._session:
            self._telling = threading.Thread(target=self._tell, args=(wish,), name="autoscaler", daemon=True)
            self._telling.start()

    def _tell(self, wish: Wish) -> None:
        try:
            self._session = self._autoscaler.ask(wish.bundles)
        except (BackendUnreachable, MachinesFailed) as error:
            if str(error) != self._failed:
                self._failed = str(error)
                self._say(f"Ray's autoscaler could not be told what is wanted: {error}")
            return
        before, self._told, self._failed = self._told, wish, ""
        if wish.waiting and (before is None or wish.waiting != before.waiting):
            more = len(wish.waiting) - _SHOWN
            names = ", ".join(wish.waiting[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
            self._say(f"{names}: Ray's autoscaler is asked for room, {in_words(wish.bundles)} in all")
        elif not wish.waiting and before is not None and before.waiting:
            self._say(f"nobody waits for room: Ray's autoscaler is asked for {in_words(wish.bundles)} from now on")
