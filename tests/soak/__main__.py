"""python -m tests.soak [--seed N] [--minutes M] [--hold]: random faults over a queue of real jobs on three hosts.

Needs root, iproute2 and util-linux. What happens is told on stderr; the summary on stdout is one JSON object. Exit code
1: something did not hold; the seed and what it was are printed, and the folder with all logs and runs stays.
"""

from __future__ import annotations

import argparse
import collections
import json
import secrets
import signal
import sys
import time
from pathlib import Path
from typing import Any

from tests.soak.acts import HELD_AT, Doing
from tests.soak.plan import Kind, Plan, plan
from tests.soak.watch import Watch
from tests.soak.world import Unreachable, World, remove, world
from tests.support.hosts import available

LOOK_EVERY_S, FILES_EVERY_S = 1.0, 15.0
SETTLES_WITHIN_S = 600.0  # a job that was lost four times pauses for 80 s before it is tried again, and then for 160


def main() -> int:
    options = arguments()
    made = plan(options.seed, options.minutes * 60.0, options.submit_until_s)
    if options.plan:
        print(made)
        return 0
    if not available():
        print("a soak needs root, iproute2 and util-linux to make hosts", file=sys.stderr)
        return 2
    print(f"seed {made.seed}: {len(made.acts)} acts in {options.minutes:g} minutes", file=sys.stderr)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # either way nothing is left of it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with world() as place:
        watch = soak(place, made, options.hold)
        kept: Path | None = place.folder
        told = summary(watch, made)
    if not watch.violations:
        remove(place.folder)
        kept = None
    print(json.dumps(told, indent=1))
    if watch.violations:
        print(f"seed {made.seed}: {len(watch.violations)} violations; all that was written: {kept}", file=sys.stderr)
        print("\n".join(f"  {one}" for one in watch.violations), file=sys.stderr)
    return 1 if watch.violations else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seed", type=int, default=secrets.randbelow(1_000_000), help="another one each time if left out"
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="of faults; then all jobs are waited for")
    parser.add_argument("--submit-until-s", type=float, help="no job is submitted later [four fifths of the length]")
    parser.add_argument("--hold", action="store_true", help="no training ends before all has been done")
    parser.add_argument("--plan", action="store_true", help="print what would be done, and when")
    return parser.parse_args()


def soak(place: World, made: Plan, hold: bool = False) -> Watch:
    """All of a plan, and until it is quiet again. `hold`: until all is done and undone, trainings wait at a step."""
    if hold:
        place.hold.at(HELD_AT)
    doing = Doing(place, time.monotonic())
    watch, left = Watch(place, doing), collections.deque(made.acts)
    files_at = doing.since + FILES_EVERY_S
    deadline = doing.since + made.length_s + SETTLES_WITHIN_S
    while left or not doing.nothing_to_undo() or not watch.all_have_ended():
        began = time.monotonic()
        if began > deadline:
            doing.say("it does not come to an end")
            break
        while left and left[0].at_s <= began - doing.since:
            doing.act(left.popleft())
        keep(doing)
        if not left and doing.nothing_to_undo():
            place.hold.release()
        watch.look()
        if began > files_at:
            watch.look_at_files()
            files_at = began + FILES_EVERY_S
        time.sleep(max(0.0, began + LOOK_EVERY_S - time.monotonic()))
    settle(doing)
    watch.look()
    watch.look_at_the_end()
    return watch


def keep(doing: Doing) -> None:
    """What is to be there is there, but for what was taken away on purpose."""
    doing.undo()
    doing.keep_nodes()
    server = doing.world.server
    if server is not None and (code := server.poll()) is not None:
        doing.wrong.append(f"the server has ended by itself, with exit code {code}")
        doing.world.start_server()
    try:
        doing.use_cordoned()
    except Unreachable:
        return


def settle(doing: Doing) -> None:
    """Nodes that went last are back, so that what is left can be told from what is not there."""
    deadline = time.monotonic() + 60.0
    while time.monotonic() < deadline:
        keep(doing)
        try:
            if all(node.name in doing.world.living() for node in doing.world.nodes) and doing.world.ready():
                return
        except Unreachable:
            pass
        time.sleep(1.0)


def summary(watch: Watch, made: Plan) -> dict[str, Any]:
    doing = watch.doing
    ends = collections.Counter(f"{job.state} ({job.reason})" for job in doing.seen.values())
    return {
        "seed": made.seed,
        "seconds": round(time.monotonic() - doing.since),
        "faults": {kind.value: doing.done[kind] for kind in Kind if kind is not Kind.SUBMIT and doing.done[kind]},
        "missed": {kind.value: count for kind, count in sorted(doing.missed.items())},
        "cordoned_by_the_queue": doing.cordoned,
        "refused_for_want_of_nodes": doing.refused,
        "server_starts": doing.world.starts,
        "jobs": dict(sorted(ends.items())),
        "attempts": watch.attempts,
        "steps": watch.steps,
        "steps_again": watch.redone,
        "checks": watch.looks,
        "without_an_answer": watch.unanswered,
        "violations": watch.violations,
    }


if __name__ == "__main__":
    raise SystemExit(main())
