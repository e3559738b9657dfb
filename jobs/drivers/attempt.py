"""The driver of one attempt of a queued job. The queue's backend starts it (`python -m jobs.drivers.attempt`).

It imports little until the server has told it what to run. Exit codes: 0 succeeded, 1 failed, 2 bad input,
75 the machines failed, 76 out of memory, 130 stopped.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator

from cluster.local.supervisor import descendants, kill, process_lives
from cluster.settings import DRIVER_TOKEN, DriverPlace, driver_place, take_out
from jobs.drivers.link.link import HttpLink
from jobs.drivers.link.messages import Order, Registered
from jobs.errors import FleetuneError, InputError, Interrupted
from jobs.teller import Teller

_RAY_COMES_UP_S = 60.0  # how long a stop waits for `ray.init`
_STOPS = (signal.SIGINT, signal.SIGTERM)


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
    say = Teller()
    link = HttpLink(place, say)
    try:
        with _stopping():
            registered = link.register()
            if registered.order is not Order.GO_ON:
                raise Interrupted(f"the server says: {registered.order}")
            link.start(registered.beat_every_s, obey)
            return run(registered, place, link, say)
    except FleetuneError as error:
        say(f"error: {error}")
        return error.exit_code
    except (KeyboardInterrupt, SystemExit):  # a signal; `ray.init` turns it into SystemExit
        say("asked to end while there was nothing to save")
        return Interrupted.exit_code
    except Exception:
        traceback.print_exc()
        return FleetuneError.exit_code
    finally:
        link.close()


def run(registered: Registered, place: DriverPlace, link: HttpLink, say: Teller) -> int:
    """Import what this kind of job needs, and run it. Raises FleetuneError."""
    if registered.kind == "command":
        from jobs.drivers.command.attempt import drive_command

        return drive_command(registered, place, say.stream.fileno(), say)
    from jobs.drivers.training_attempt import drive_training

    return drive_training(registered, link, say.stream, say)


def obey(order: Order, reason: str) -> None:
    """Carry out an order. STOP acts as SIGTERM; LEAVE ends at once, because another attempt may be running."""
    if order is Order.STOP:
        deadline = time.monotonic() + _RAY_COMES_UP_S
        while _ray_has_sigterm() and time.monotonic() < deadline:
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)
        return
    while kill([pid for pid in descendants(os.getpid()) if process_lives(pid)]):
        pass
    os._exit(Interrupted.exit_code)


def _ray_has_sigterm() -> bool:
    """Whether `ray.init` is running, whose handler of SIGTERM would end the process without cleaning up."""
    return getattr(signal.getsignal(signal.SIGTERM), "__module__", "").startswith("ray.")


@contextlib.contextmanager
def _stopping() -> Iterator[None]:
    """End at once on a signal that comes before there is anything to save.

    The handler raises KeyboardInterrupt, which code that catches every `Exception` lets pass.
    """
    for number in _STOPS:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in _STOPS:  # later signals must not change how the attempt ended
            signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything is closed and reported. A thread that waits in Ray's code for a lost gang would otherwise end the
    # process by a signal during the interpreter's shutdown.
    os._exit(code)
