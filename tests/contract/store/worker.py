"""A process that uses a store beside the tests: `python -m tests.contract.store.worker COMMAND URL [ARGUMENT]`.

It says `ready` once it has started, and begins when it gets a line. What it has done it says line by line.
"""

from __future__ import annotations

import resource
import signal
import sys

from orchestrator.queue.errors import StoreBroken
from orchestrator.queue.records import Transition
from orchestrator.queue.states import Reason, State
from orchestrator.queue.store import Store, SubmissionKey
from orchestrator.store import open_store
from tests.support.stores import PLACES, START_S, lead, new, submit


def say(text: str) -> None:
    print(text, flush=True)


def submit_for_ever(store: Store) -> None:
    """Two jobs at a time; their ids are said once the store has them."""
    while True:
        say(" ".join(job.job_id for job in store.submit([new(), new()], START_S)))


def submit_once(store: Store) -> None:
    say(" ".join(job.job_id for job in store.submit([new(), new()], START_S, SubmissionKey("anna", "key", "digest"))))


def submit_some(store: Store) -> None:
    for _ in range(50):
        submit(store)
    say("done")


def grant_all(store: Store) -> None:
    """Every job that waits, one by one, whoever else does it; the ids of those that were granted here."""
    epoch = lead(store)
    for job in reversed(store.jobs(limit=1000)):
        move = Transition(job.job_id, State.QUEUED, 0, State.STARTING, Reason.GRANTED, "", PLACES)
        if store.apply_transitions(epoch, [move], START_S):
            say(job.job_id)


def fill_the_disk(url: str) -> None:
    """No file may grow above a megabyte, until it may: how many were taken before, the error, and one more id."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    store = open_store(url)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, resource.RLIM_INFINITY))
    taken = 0
    try:
        while True:
            taken += len(store.submit([new(spec="x" * 5000), new()], START_S))
    except StoreBroken as error:
        say(str(taken))
        say(str(error))
    say(str(sum(store.count().values())))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    say(submit(store).job_id)
    store.close()


COMMANDS = {one.__name__: one for one in (submit_for_ever, submit_once, submit_some, grant_all)}


def main(command: str, url: str) -> None:
    say("ready")
    sys.stdin.readline()
    if command == "fill_the_disk":
        fill_the_disk(url)
        return
    store = open_store(url)
    if command in COMMANDS:
        COMMANDS[command](store)
    store.close()
    say("closed")


if __name__ == "__main__":
    main(*sys.argv[1:])
