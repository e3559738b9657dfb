"""The entry point of the command `fleetune`."""

import atexit
import os
import sys


def main() -> None:
    """Run the command. Ctrl-C is handled during the imports, too."""
    open_closed_streams()
    try:
        from cluster.imports import quick_imports

        with quick_imports():
            from orchestrator.cli.app import main as run

        run()
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)
    except SystemExit as end:
        if "torch" in sys.modules and isinstance(end.code, int | None):
            from jobs.console import end_process

            atexit._run_exitfuncs()
            end_process(end.code or 0)  # the interpreter's cleanup takes a second once Ray and torch are loaded
        raise


def open_closed_streams() -> None:
    """Let standard streams that are closed, as those of a daemon may be, lead nowhere.

    Otherwise the next file that is opened would get the descriptor, and what native code and child processes print.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode)  # noqa: SIM115
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)
