"""What a request may cost the server: wrong specs of any size are refused after a bounded amount of work."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import FleetuneError, StorageError
from orchestrator.service.admission.admit import admit
from orchestrator.service.observability import run_files
from orchestrator.service.observability.run_files import RunFiles
from tests.support.service import ANNA, ServiceWorld, command, queue

MOST_CPU_S = 1.5  # up to 0.3 was measured; work that grows with the square of the input takes far longer


@pytest.fixture(scope="module")
def world() -> Iterator[ServiceWorld]:
    made = ServiceWorld(4)
    with pytest.raises(FleetuneError):
        admit(made.context, [command(nonsense=1)], ANNA)  # what is made once
    yield made
    made.close()


def cpu_s(act: Callable[[], object]) -> float:
    """CPU seconds of this thread for ``act``, the least of three.

    What other tests left in this process is kept out: its threads, and its objects, which the garbage collector would
    walk through on our account.
    """
    gc.collect()
    gc.freeze()
    try:
        return min(_thread_s(act) for _ in range(3))
    finally:
        gc.unfreeze()


def _thread_s(act: Callable[[], object]) -> float:
    began_s = time.thread_time()
    act()
    return time.thread_time() - began_s


@pytest.mark.parametrize(
    ("specs", "words"),
    [
        ([command("job", **{f"key{number}": 1 for number in range(4000)})], "and 31 more"),
        ([command(**queue(after=[{}] * 10_000, secrets=["a b"] * 5000))], "queue.after"),
        ([command("job", **{"k" * 1_000_000: 1})], "unknown key"),
        ([command(nonsense=1)] * 10_000, "the 9,980 specs after that were not looked at"),
        ([command(**queue(after=[f"gone-{n}"])) for n in range(10_000)], "the 9,980 specs after that"),
        ([command(**queue(after=[f"gone-{n}" for n in range(1000)]))], "there is no job 'gone-0'"),
        ([command(kind="x" * 1_000_000)], "kind: must be"),
        ([command(env={f"a {number}": 1 for number in range(20_000)})], "env: has 20,000 keys, but at most 1,000"),
        ([command(env={f"a{number}": "1" for number in range(1001)})], "env: has 1,001 keys, but at most 1,000"),
        ([command(env={"x" * 1_000_000: dict.fromkeys(map(str, range(1001)))})], "x...: has 1,001 keys"),
        ([command(command=[1] * 200_000)], "command.0: must be text"),
    ],
    ids=[
        "keys",
        "items",
        "long-key",
        "specs",
        "parents",
        "parents-of-one",
        "long-kind",
        "variables",
        "good-variables",
        "long-variable",
        "words",
    ],
)
def test_wrong_specs_are_refused_after_little_work(world: ServiceWorld, specs: list[Any], words: str) -> None:
    def refused() -> None:
        with pytest.raises(FleetuneError) as caught:
            admit(world.context, specs, ANNA)
        assert words in str(caught.value)
        assert len(str(caught.value)) < 10_000

    assert cpu_s(refused) < MOST_CPU_S


def test_a_part_of_metrics_that_no_run_writes_is_not_parsed(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "metrics"
    folder.mkdir(parents=True)
    part = folder / f"{1:020d}-rank-0.jsonl"
    line = b'{"step": 1, "loss": 0.5}\n'
    part.write_bytes(line * (run_files.LARGEST_PART // len(line) + 1))

    def refused() -> None:
        with pytest.raises(StorageError, match="larger than any part"):
            run_files.records(RunFiles.at(str(tmp_path / "run")), 0)

    assert cpu_s(refused) < MOST_CPU_S
