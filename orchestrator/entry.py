"""Where the command `fleetune` begins: what is typed while its modules are still being imported is answered as well."""

import sys


def main() -> None:
    try:
        from orchestrator.cli.app import main as run

        run()
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)
