"""The entry point of the command `fleetune`."""

import atexit
import contextlib
import os
import sys


def main() -> None:
    """Run the command. Ctrl-C is handled during the imports, too."""
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
    """Exit without the interpreter's cleanup, which takes a second once Ray and torch are loaded."""
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError, ValueError):  # the reader may have closed the pipe
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
