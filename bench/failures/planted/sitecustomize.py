"""On PYTHONPATH, plants the failures of the variable PLANTED in the processes of a run: see `planting`."""

from __future__ import annotations

import os

if "PLANTED" in os.environ:
    from bench.failures.planting import plant_all

    plant_all(os.environ["PLANTED"])
