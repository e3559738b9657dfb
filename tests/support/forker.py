"""A process that has imported all that a gang needs, and forks gangs: a start takes a moment instead of seconds.

`python -m tests.support.forker` reads a JSON object a line: {"workers", "listing" (see `gang_cases`), "output" (a file
for what the workers print)}. Once the gang has ended it prints its exit code: the first that is not 0, of any worker.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import sys
import traceback
from typing import Any

import torch

from jobs.training.engine import import_deepspeed
from tests.support import gang_cases


def import_what_a_gang_needs() -> None:
    import_deepspeed(torch.device("cpu"))
    import transformers
    from transformers.integrations import HfDeepSpeedConfig  # noqa: F401

    for name in ("BertForSequenceClassification", "GPT2LMHeadModel", "LlamaForCausalLM"):
        getattr(transformers, name)


def forked(asked: dict[str, Any]) -> int:
    """The exit code of a gang that has ended."""
    workers, store = int(asked["workers"]), f"file://{asked['output']}.{secrets.token_hex(4)}"
    living = {fork(asked, rank, workers, store) for rank in range(workers)}
    first = 0
    while living:
        pid, status = os.wait()
        living.discard(pid)
        code = os.waitstatus_to_exitcode(status)
        if code and not first:
            first = code
            for other in living:
                os.kill(other, signal.SIGKILL)
    return first


def fork(asked: dict[str, Any], rank: int, workers: int, store: str) -> int:
    """A worker, as torchrun would start it; its process id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(workers), LOCAL_WORLD_SIZE=str(workers),
            TORCHELASTIC_RUN_ID="forked",
        )  # fmt: skip
        output = os.open(asked["output"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        for stream in (1, 2):
            os.dup2(output, stream)
        gang_cases.main(asked["listing"], store)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(1)


if __name__ == "__main__":
    import_what_a_gang_needs()
    for line in sys.stdin:
        print(forked(json.loads(line)), flush=True)
