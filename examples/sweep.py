"""Train with several learning rates at once and say which was the best: the queue from a script.

    python examples/sweep.py [SPEC]

With FLEETUNE_URL the jobs go to that server. Without, to one of this machine, which is started if there is none; the
jobs then end with this script.
"""

from __future__ import annotations

import sys

from orchestrator import Client, JobFailed, load_spec


def main() -> None:
    spec = load_spec(sys.argv[1] if len(sys.argv) > 1 else "examples/reviews.yaml")
    with Client() as client:
        runs = client.submit_many(spec.vary(learning_rate=[3e-5, 1e-4, 3e-4]))
        print(f"{len(runs)} jobs at {client.url}: fleetune queue shows them")
        losses: dict[str, float] = {}
        for run in client.as_completed(runs):
            try:
                result = run.result()
            except JobFailed as error:
                print(error)
                continue
            losses[run.name] = result.metrics["eval_loss"]
            print(f"{run.name}  eval_loss {losses[run.name]:.4f}  {result.paths.model if result.paths else ''}")
    if losses:
        print(f"the best: {min(losses, key=losses.__getitem__)}")


if __name__ == "__main__":
    main()
