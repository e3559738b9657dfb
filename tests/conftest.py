"""Settings of all tests."""

import collections
import gc
import itertools
import os
import pathlib
import re
from collections.abc import Callable, Iterator

import pytest
from hypothesis import settings

from tests.support import fork_server

TIMES = re.compile(r"^\| +(\d+) \| (\S+\.py) \|", re.MULTILINE)
WHOLE_RUNS = ("acceptance", "hosts")  # folders

# Of torch in this process and in all that tests start. Two threads wait for each other in every operation: where other
# processes keep the cores busy, as those of another file do, a small model then takes a hundred times as long.
os.environ["OMP_NUM_THREADS"] = "1"
# By default Ray gives its workers a niceness of 15: a training that a test waits for would get next to nothing of a
# core that the tests of another file keep busy.
os.environ.update(RAY_worker_niceness="0")
# Hundreds of processes import this repository, and would compile it anew each time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Machines differ, and a slow one is no failure; numbers of examples are bounded instead. The examples are the same in
# every run, so that a change is not refused for what it did not touch; `--hypothesis-profile=explore` draws new ones.
settings.register_profile("explore", deadline=None, max_examples=60)
settings.register_profile("fleetune", settings.get_profile("explore"), derandomize=True, database=None)
settings.load_profile("fleetune")


@pytest.fixture
def own_protocols(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow storage that only tests have, as an administrator would."""
    monkeypatch.setenv("FLEETUNE_PROTOCOLS", "memory,cut,faulty,dropping,counted")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the files so that two processes keep both cores busy, and end together; see `in_turns`."""
    here = pathlib.Path(__file__).parent
    seconds: collections.Counter[pathlib.Path] = collections.Counter()
    for took, file in TIMES.findall((here / "README.md").read_text()):
        seconds[here / file] += int(took)
    paths = list(dict.fromkeys(item.path for item in items))
    place = {path: number for number, path in enumerate(in_turns(paths, lambda path: seconds[path]))}
    items.sort(key=lambda item: place[item.path])


def in_turns(paths: list[pathlib.Path], seconds: Callable[[pathlib.Path], float]) -> list[pathlib.Path]:
    """Whole runs and the other files in turns, the longest of each first.

    A whole run alone keeps both cores busy where it starts a Ray and a gang. Two at once take twice as long, and the
    files that mostly wait would be left for the end, where both cores would be idle.
    """
    begins: dict[pathlib.Path, float] = {}  # which share of its kind comes before it
    for kind in (
        [path for path in paths if path.parent.name in WHOLE_RUNS],
        [path for path in paths if path.parent.name not in WHOLE_RUNS],
    ):
        kind.sort(key=lambda path: -seconds(path))
        before = itertools.accumulate(map(seconds, kind), initial=0.0)
        total = sum(map(seconds, kind)) or 1.0
        begins |= {path: so_far / total for path, so_far in zip(kind, before, strict=False)}
    return sorted(paths, key=lambda path: (begins[path], -seconds(path)))


@pytest.fixture(scope="session", autouse=True)
def forked_ray_workers() -> Iterator[None]:
    """Run the fork server of this process of pytest: see `tests.support.fork_server`."""
    with fork_server.running():
        yield


def pytest_collection_finish() -> None:
    """Leave what was imported and collected, some million objects, out of later garbage collections."""
    gc.collect()
    gc.freeze()
