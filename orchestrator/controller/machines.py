"""The machines that the jobs of a store run on. The store remembers them while jobs hold leases.

A server with other machines does not see the drivers of these jobs. It would take the jobs for lost, and start them a
second time. So it may not lead, until the leases are closed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cluster.text import many
from orchestrator.queue.errors import OtherMachines
from orchestrator.queue.store import Store

_FACT: Final = "machines"


@dataclass(frozen=True)
class Machines:
    """The machines of a server.

    Attributes:
        label: name for people.
        start: how a server with these machines is started, as "with --address http://head:8265".
        marks: names of these machines. Machines with a common mark are the same.
    """

    label: str
    start: str
    marks: frozenset[str]


UNNAMED: Final = Machines("machines without a name", "as before", frozenset({"unnamed"}))


class MachinesGuard:
    """Compares the machines of this server with those on which jobs of the store hold leases.

    A store of an older release does not know its machines: the first leader writes them.
    """

    def __init__(
        self,
        store: Store,
        here: Machines = UNNAMED,
        session: Callable[[], str] = lambda: "",
        takes_over: bool = False,
    ) -> None:
        """
        Args:
            session: returns a further mark, which changes when the machines are started anew; '': there is none.
            takes_over: the other machines are gone: this server may lead, and their jobs count as lost.
        """
        self._store, self._here, self._session, self._takes_over = store, here, session, takes_over

    def check(self) -> None:
        """Check that no job holds a lease on other machines.

        Raises:
            OtherMachines: jobs do.
            StoreBroken, BackendUnreachable: store or machines do not answer.
        """
        known = self._known()
        if self._takes_over or known is None or known.marks & self._here.marks:
            return
        held = len({lease.job_id for lease in self._store.leases(held=True)})
        if held and self._session() not in known.marks:
            raise OtherMachines(
                f"{many(held, 'job')} of this store {'holds' if held == 1 else 'hold'} leases on {known.label}. This "
                f"server has {self._here.label}, where it would start {'it' if held == 1 else 'them'} a second time. "
                f"Start the server {known.start}, or do that once and cancel or pause the jobs first. If those "
                "machines are gone, start this server with --take-over: then the jobs on them count as lost"
            )

    def record(self, epoch: int) -> None:
        """Write the machines of this server into the store, as its leader.

        Raises:
            OtherMachines: jobs hold leases on other machines. Nothing was written.
            NotLeader: another server has led since.
            StoreBroken, BackendUnreachable: store or machines do not answer.
        """
        self.check()
        session = self._session()
        marks = self._here.marks | ({session} if session else set())
        here = Machines(self._here.label, self._here.start, marks)
        if self._known() != here:
            text = json.dumps({"label": here.label, "start": here.start, "marks": sorted(marks)})
            self._store.put_facts({_FACT: text}, epoch=epoch)

    def _known(self) -> Machines | None:
        try:
            value = json.loads(self._store.facts().get(_FACT, "null"))
            return Machines(str(value["label"]), str(value["start"]), frozenset(map(str, value["marks"])))
        except (ValueError, KeyError, TypeError):  # never written, or not by a server
            return None
