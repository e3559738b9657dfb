"""On PYTHONPATH, a driver does not leave the phase of FLEETUNE_TESTS_LINGERS before it is stopped.

`connect`: it has connected to Ray, and prepares nothing. `prepare`: the data is prepared, and no workers are started.
"""

from __future__ import annotations

import os
import time
from typing import Any

from tests.support.changed_module import when_loaded

_PHASE = os.environ["FLEETUNE_TESTS_LINGERS"]


def _linger(ray_driver: Any) -> None:
    prepare = ray_driver.ready_data

    def ready_data(*given: Any) -> Any:
        if _PHASE == "prepare":
            prepare(*given)
        while True:
            time.sleep(0.05)

    ray_driver.ready_data = ready_data


when_loaded("jobs.drivers.finetune.ray_driver", _linger)
