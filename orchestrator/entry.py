"""Where the command `fleetune` begins and ends."""

import atexit
import contextlib
import os
import sys


def main() -> None:
    """Run the command. What is typed while its modules are still being imported is answered as well."""
    try:
        from orchestrator.cli.app import main as run

        run()
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)
    except SystemExit as end:
        if "torch" in sys.modules and isinstance(end.code, int | None):
            _leave(end.code or 0)
        raise


def _leave(code: int) -> None:
    """Exit without taking the interpreter apart: with Ray and torch in it that takes a second."""
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError, ValueError):  # nobody reads any more
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
