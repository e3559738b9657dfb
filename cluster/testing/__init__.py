"""A fake cluster for tests. It ships with the package, so that users can test against it.

May import `capacity`, `backend` and the ground of `cluster`. Start with `fake_backend`.

    clock = FakeClock()
    backend = FakeBackend(FakeCluster(nodes("n1", "n2", gpus=8), clock))
    backend.script("tuning-*", runs_s=600, exit_code=1)
    backend.start(Launch("tuning-1", ("python", "-m", "anything"), metadata={"gpus": "n1=4 n2=4"}), fence=1)
    clock.advance(60)
    backend.lose_node("n2")
    assert not double_runs(backend.history())

`python -m cluster.testing serve --socket PATH` runs such a cluster in a separate process, so that a test can kill the
process that uses it. `ServedCluster(PATH)` then replaces `FakeCluster`. `served()` does both.
"""

from cluster.testing.fake_backend import FakeBackend
from cluster.testing.fake_cluster import FakeClock, FakeCluster, Script, nodes
from cluster.testing.history import Run, double_runs, most_gpus
from cluster.testing.served_cluster import ServedCluster, served

__all__ = [
    "FakeBackend",
    "FakeClock",
    "FakeCluster",
    "Run",
    "Script",
    "ServedCluster",
    "double_runs",
    "most_gpus",
    "nodes",
    "served",
]
