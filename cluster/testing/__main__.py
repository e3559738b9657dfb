"""`python -m cluster.testing serve --socket PATH`: runs a fake cluster until this process is ended."""

from __future__ import annotations

import argparse

from cluster.testing.fake_cluster import FakeClock, FakeCluster, Script, nodes
from cluster.testing.served_cluster import serve


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m cluster.testing", description=__doc__)
    parser.add_argument("what", choices=["serve"])
    parser.add_argument("--socket", required=True)
    parser.add_argument("--nodes", type=int, default=1, help="their names are n1, n2, ...")
    parser.add_argument("--gpus", type=int, default=8, help="of each node")
    parser.add_argument("--cpus", type=int, default=64, help="of each node")
    parser.add_argument("--runs-s", type=float, default=60.0, help="how long each program runs, in seconds")
    parser.add_argument("--rate", type=float, default=0.0, help="seconds of the cluster's clock in one real second")
    given = parser.parse_args()
    names = (f"n{number}" for number in range(1, given.nodes + 1))
    cluster = FakeCluster(nodes(*names, cpus=given.cpus, gpus=given.gpus), FakeClock(rate=given.rate))
    cluster.add_script("*", Script(runs_s=given.runs_s))
    serve(given.socket, cluster)


if __name__ == "__main__":
    main()
