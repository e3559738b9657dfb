"""Console output of a server: few lines, without secrets."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence

from orchestrator.http.scrub import Scrubber


class Output:
    """Prints lines. Thread-safe. If the terminal is gone, the server goes on."""

    def __init__(self, scrub: Scrubber, verbose: bool = False) -> None:
        self.scrub, self._verbose = scrub, verbose
        self._lock = threading.Lock()
        self._gone = False

    def say(self, text: str) -> None:
        """Print a line with the time (UTC)."""
        self._write(f"{time.strftime('%H:%M:%SZ', time.gmtime())} {self.scrub.line(text)}")

    def greet(self, lines: Sequence[str]) -> None:
        self._write(self.scrub.line("\n".join(lines)))

    def take_logs(self) -> None:
        """Print log messages of libraries: errors only, or more if verbose."""
        handler = _Handler(self)
        handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        logging.basicConfig(handlers=[handler], level=logging.INFO if self._verbose else logging.ERROR, force=True)
        for name in ("httpx", "httpcore", "alembic", "urllib3"):
            logging.getLogger(name).setLevel(logging.ERROR)

    def _write(self, text: str) -> None:
        with self._lock:
            try:
                if not self._gone:
                    print(text, flush=True)
            except (OSError, ValueError):
                self._gone = True


class _Handler(logging.Handler):
    def __init__(self, output: Output) -> None:
        super().__init__()
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        self._output.say(self.format(record))
