"""Run a program under a limit on its address space: `limited.py BYTES FOLDER PROGRAM.py ARGUMENTS...`.

BYTES of 0 is no limit. Every process leaves in FOLDER what it has taken, as `{pid}.json`.
"""

from __future__ import annotations

import json
import os
import pathlib
import resource
import runpy
import sys


def taken() -> dict[str, int]:
    """The most address space and resident memory that this process has had so far, in bytes."""
    lines = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
    return {name: int(lines[field].split()[0]) * 1024 for name, field in (("mapped", "VmPeak"), ("resident", "VmHWM"))}


def main() -> None:
    limit, folder, program, *arguments = sys.argv[1:]
    if int(limit):
        resource.setrlimit(resource.RLIMIT_AS, (int(limit), int(limit)))
    sys.argv = [program, *arguments]
    leave = os._exit

    def write_and_leave(code: int) -> None:
        pathlib.Path(folder, f"{os.getpid()}.json").write_text(json.dumps(taken()))
        leave(code)

    os._exit = write_and_leave  # type: ignore[assignment]  # how gang_cases ends
    runpy.run_path(program, run_name="__main__")
    write_and_leave(0)


if __name__ == "__main__":
    main()
