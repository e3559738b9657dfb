"""The program of a soak's commands: says in a journal of its job that it begins, that it lives, and that it ends.

python program.py FOLDER SECONDS EXIT_CODE
"""

from __future__ import annotations

import json
import os
import sys
import time

BEAT_S = 0.2


def main(folder: str, runs_s: float, exit_code: int) -> int:
    job, attempt, rank = (os.environ[name] for name in ("FLEETUNE_JOB", "FLEETUNE_ATTEMPT", "RANK"))
    journal = os.open(os.path.join(folder, f"{job}.jsonl"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    who = {"job_id": job, "attempt": int(attempt), "rank": int(rank), "host": os.uname().nodename, "pid": os.getpid()}

    def say(what: str) -> None:
        line = json.dumps({**who, "at_s": time.monotonic(), "what": what})  # a clock that all hosts here share
        os.write(journal, f"{line}\n".encode())

    say("begins")
    until = time.monotonic() + runs_s
    while time.monotonic() < until:
        time.sleep(BEAT_S)
        say("lives")
    say("ends")
    return exit_code


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3])))
