"""The driver of one attempt of a queued job. The queue's backend starts it (`python -m jobs.drivers.attempt`).

It imports little until the server has told it what to run. Exit codes: 0 succeeded, 1 failed, 2 bad input,
75 the machines failed, 76 out of memory, 77 diverged, 130 stopped.
"""

from __future__ import annotations

import sys
import traceback

from cluster.errors import FleetuneError, InputError, Interrupted
from cluster.imports import quick_imports
from cluster.settings import DRIVER_TOKEN, DriverPlace, driver_place, take_out
from jobs.console import Console, end_process
from jobs.drivers.link.link import HttpLink
from jobs.drivers.link.messages import Instruction, Registered
from jobs.drivers.stop_request import StopKind, StopRequest

_KINDS = {Instruction.STOP: StopKind.AFTER_CHECKPOINT, Instruction.LEAVE: StopKind.LEAVE}


def main() -> int:
    """Run the attempt and return the exit code."""
    place = driver_place()
    if place is None:
        print(
            "error: a queue starts python -m jobs.drivers.attempt with the variables FLEETUNE_URL, FLEETUNE_JOB, "
            "FLEETUNE_ATTEMPT and FLEETUNE_DRIVER_TOKEN. By hand, use fleetune run SPEC or fleetune submit SPEC",
            file=sys.stderr,
        )
        return InputError.exit_code
    take_out(DRIVER_TOKEN)
    say = Console()
    link, stop = HttpLink(place, say), StopRequest(patient=True)
    try:
        stop.hold()
        with stop.raising():
            registered = link.register()
            if registered.order is not Instruction.GO_ON:
                raise Interrupted(f"the server says: {registered.order}")
            link.start(registered.beat_every_s, lambda order, reason: stop.ask("heartbeat", reason, _KINDS[order]))
            return run(registered, place, link, stop, say)
    except FleetuneError as error:
        say(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        say("asked to end while there was nothing to save")
        return Interrupted.exit_code
    except Exception:
        traceback.print_exc()
        return FleetuneError.exit_code
    finally:
        link.close()


def run(registered: Registered, place: DriverPlace, link: HttpLink, stop: StopRequest, say: Console) -> int:
    """Import what this kind of job needs, and run it. Raises FleetuneError."""
    if registered.kind == "command":
        with quick_imports():
            from jobs.drivers.command.attempt import drive_command

        return drive_command(registered, place, stop, say.stream.fileno(), say)
    with quick_imports():
        from jobs.drivers.training_attempt import drive_training

    return drive_training(registered, link, stop, say.stream, say)


if __name__ == "__main__":
    # Everything is closed and reported. A thread that waits in Ray's code for a lost gang would otherwise end the
    # process by a signal during the interpreter's shutdown.
    end_process(main())
