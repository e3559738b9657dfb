"""Computes what a job will do before anything is started, in pure functions of the spec.

May import `spec` and `cluster.capacity`. Start with `batching`. `memory` predicts the peak memory of a worker.
"""

from jobs.planning.batching import Batching, plan_batching
from jobs.planning.elastic import gang_of, most_workers, with_workers, worker_numbers
from jobs.planning.learning_rate import learning_rate_at
from jobs.planning.steps import total_rows, total_steps, warmup_steps

__all__ = [
    "Batching",
    "gang_of",
    "learning_rate_at",
    "most_workers",
    "plan_batching",
    "total_rows",
    "total_steps",
    "warmup_steps",
    "with_workers",
    "worker_numbers",
]
