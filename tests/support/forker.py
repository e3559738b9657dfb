"""A process that imports what a gang needs once, then forks one gang after another: each starts without imports.

`python -m tests.support.forker MODULE` reads a JSON object a line: {"workers", "listing", "output" (a file for what the
workers print)}. Each worker calls MODULE.main with the listing and a place to meet. Once the gang has ended, the exit
code is printed: 0, or the first other one of a worker.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import secrets
import signal
import sys
import traceback
from typing import Any

import torch

from jobs.training.model.engine import import_deepspeed
from jobs.training.model.load import import_model_classes


def import_what_a_gang_needs() -> None:
    importlib.import_module(sys.argv[1])
    import_deepspeed(torch.device("cpu"))
    import_model_classes()
    import transformers
    from transformers.integrations import HfDeepSpeedConfig  # noqa: F401

    for name in ("BertForSequenceClassification", "GPT2LMHeadModel", "LlamaForCausalLM"):
        getattr(transformers, name)
    gc.collect()
    gc.freeze()  # DeepSpeed collects garbage several times, and each time all of these objects would be looked at


def forked(asked: dict[str, Any]) -> int:
    """The exit code of a gang that has ended."""
    workers, store = int(asked["workers"]), f"file://{asked['output']}.{secrets.token_hex(4)}"
    living = {fork(asked, rank, workers, store) for rank in range(workers)}
    first = 0
    while living:
        pid, status = os.wait()
        if pid not in living:
            continue
        living.remove(pid)
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
        importlib.import_module(sys.argv[1]).main(asked["listing"], store)
    except BaseException:
        traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(1)


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries talk while they are imported
    import_what_a_gang_needs()
    for line in sys.stdin:
        print(forked(json.loads(line)), file=answers, flush=True)
