"""A sweep, from its spec to its outcome: `python -m jobs.sweep SPEC`, and what `fleetune run` calls for one."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import sys
from collections.abc import Sequence

from cluster.settings import ray_address
from jobs import storage
from jobs.devices import no_gpu_here
from jobs.errors import CapacityError, FleetuneError, Interrupted, SpecError
from jobs.load import load_sweep
from jobs.outcome import Outcome
from jobs.paths import JobPaths, new_run_name
from jobs.progress import PlainProgress, Progress
from jobs.quiet import redirected_output, user_stream
from jobs.record import concluded
from jobs.runref import with_model_of_run
from jobs.search.spec import SweepSpec
from jobs.search.varying import check_space
from jobs.validate import validate
from jobs.watch import Announcer


def run_sweep(sweep: SweepSpec, *, address: str | None = None, progress: Progress) -> Outcome:
    """Search on the cluster at `address`, RAY_ADDRESS, or a Ray of this machine; the outcome is the best trial's.

    Raises:
        InputError: found before anything was written. What is found later is the outcome's reason.
    """
    if address is None and ray_address() is None and (problem := no_gpu_here(sweep.base)):
        raise CapacityError(problem)
    check_space(sweep)
    warnings = validate(sweep.base).warnings
    sweep = sweep.model_copy(update={"base": with_model_of_run(sweep.base)})
    name = new_run_name(sweep.name, datetime.datetime.now(datetime.UTC))
    paths = JobPaths.of(sweep.base.storage_path, name)
    storage.write_bytes(paths.spec, sweep.model_dump_json(indent=1).encode() + b"\n")
    with contextlib.closing(Announcer(paths, progress)) as announce, redirected_output(paths.log("driver")):
        announce("phase", f"sweep {paths.name} in {paths.root}", phase="start", root=paths.root, resumed=False)
        for warning in warnings:
            announce("warning", warning)

        def drive() -> Outcome:
            from jobs.search.drive import drive_sweep

            return drive_sweep(sweep, paths, address, announce)

        outcome = concluded(paths, drive)
        announce("ended", ending_of_sweep(paths, outcome), status=outcome.status)
    return outcome


def ending_of_sweep(paths: JobPaths, outcome: Outcome) -> str:
    """The last lines about a sweep."""
    if outcome.reason is not None:
        return f"{outcome.status}: {outcome.reason}\nlogs: {paths.logs}"
    best = storage.join(paths.root, "best.json")
    model = f"\nmodel: {outcome.model_path}" if outcome.model_path else ""
    return f"succeeded; the best trial's spec, which runs as it is: {best}{model}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 succeeded, 1 failed, 2 bad input, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="python -m jobs.sweep", description="Run one sweep.")
    parser.add_argument("spec", help="YAML or JSON file of kind sweep")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a value of the spec")
    options = parser.parse_args(arguments)
    try:
        sweep = load_sweep(options.spec, options.set)
        if sweep is None:
            raise SpecError(f"{options.spec} is not of kind sweep: python -m jobs.finetune {options.spec} trains it")
        return run_sweep(sweep, progress=PlainProgress(user_stream())).exit_code
    except FleetuneError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return Interrupted.exit_code


if __name__ == "__main__":
    sys.exit(main())
