"""On PYTHONPATH, a preparation stops itself by SIGSTOP as soon as it has stored its first part."""

from __future__ import annotations

import os
import signal
from typing import Any

from tests.support.changed_module import when_loaded


def _stop(parts: Any) -> None:
    store, stopped = parts.store_part, list[bool]()

    def store_part(*given: Any, **more: Any) -> Any:
        facts = store(*given, **more)
        if not stopped:
            stopped.append(True)
            os.kill(os.getpid(), signal.SIGSTOP)
        return facts

    parts.store_part = store_part


when_loaded("jobs.data.preparation.parts", _stop)
