"""`python -m jobs.finetune SPEC.yaml`: one fine-tuning run, on Ray, or without it where torchrun starts the processes.

fleetune run SPEC                                                   a Ray of this machine, or --address
ray job submit --working-dir . -- python -m jobs.finetune SPEC      the driver on a cluster's head
torchrun --nproc_per_node N -m jobs.finetune SPEC                   no Ray at all
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence

from cluster.settings import set_default, torchrun_world
from jobs.errors import FleetuneError, Interrupted
from jobs.load import load_spec
from jobs.outcome import Outcome
from jobs.progress import PlainProgress, Progress
from jobs.quiet import redirected_output, user_stream
from jobs.record import concluded, ending_of, open_run
from jobs.spec import Spec
from jobs.validate import validate
from jobs.watch import Announcer


def run_on_ray(spec: Spec, *, address: str | None = None, progress: Progress) -> Outcome:
    """Validate, prepare, train, evaluate, export; on the cluster at `address`, RAY_ADDRESS, or a Ray of this machine.

    Raises:
        InputError: found before a run directory was made. What is found later is the outcome's reason.
    """
    warnings = validate(spec)
    paths = open_run(spec)
    with contextlib.closing(Announcer(paths, progress)) as announce, redirected_output(paths.log("driver")):
        announce("phase", f"run {paths.name} in {paths.root}", phase="start", root=paths.root)
        for warning in warnings:
            announce("warning", warning)

        def drive() -> Outcome:
            from jobs.training.ray_driver import drive_on_ray

            return drive_on_ray(spec, paths, address, announce, progress)

        outcome = concluded(paths, drive)
        announce("ended", ending_of(paths, outcome), status=outcome.status)
    return outcome


def main(arguments: Sequence[str] | None = None) -> int:
    """The entry point of a driver; returns the exit code: 0 succeeded, 1 failed, 2 bad input, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="python -m jobs.finetune", description="Run one fine-tuning job.")
    parser.add_argument("spec", help="YAML or JSON file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a value of the spec")
    options = parser.parse_args(arguments)
    try:
        spec = load_spec(options.spec, options.set)
        world = torchrun_world()
        if world is None:
            return run_on_ray(spec, progress=PlainProgress(user_stream())).exit_code
        if spec.resources.gpus_per_worker == 0:  # DeepSpeed, at its first import, would warn that it found no GPU
            set_default("DS_ACCELERATOR", "cpu")
        from jobs.training.torchrun import run_under_torchrun

        return run_under_torchrun(spec, world).exit_code
    except FleetuneError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return Interrupted.exit_code


if __name__ == "__main__":
    sys.exit(main())
