"""Logits of exported models, computed by another process, which knows of a model only what its folder holds.

`python -m tests.support.reload_logits` reads a request a line, a JSON object, and answers each with an empty line. One
process serves all tests of a process of pytest, because it imports for some seconds.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from typing import IO, Any, NamedTuple

import numpy as np

from tests.support.gangs import ROOT, Case


class Process(NamedTuple):
    running: subprocess.Popen[str]
    errors: IO[str]


def reloaded_logits(case: Case, folder: str, *base: str) -> Any:
    """Logits of the first three training rows, by the model in the folder, or by the base model with an adapter."""
    out = str(case.folder / f"{case.name}-reloaded.npy")
    task = case.spec.model.task
    request = {"folder": folder, "base": base, "task": task, "prepared": case.prepared.root, "out": out}
    process = _started()
    assert process.running.stdin is not None and process.running.stdout is not None
    print(json.dumps(request), file=process.running.stdin, flush=True)
    if not process.running.stdout.readline():
        process.errors.seek(0)
        raise AssertionError(process.errors.read()[-3000:])
    return np.load(out)


@functools.cache
def _started() -> Process:
    """Start the process. It ends with its standard input."""
    errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - open as long as the process
    command = [sys.executable, "-m", "tests.support.reload_logits"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    running = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=errors, text=True)
    return Process(running, errors)


def _compute(folder: str, base: list[str], task: str, prepared: str, out: str) -> None:
    import torch
    import transformers

    from jobs.data.prepared import Prepared
    from jobs.training.model.batch import collate

    causal = task == "causal-lm"
    auto = transformers.AutoModelForCausalLM if causal else transformers.AutoModelForSequenceClassification
    model = auto.from_pretrained(*base or [folder], **({} if causal else {"num_labels": 3})).eval()
    if base:
        import peft

        model = peft.PeftModel.from_pretrained(model, folder)
    rows = Prepared.open(prepared).split("train").read_rows(np.arange(3))
    batch = collate(rows, task, 0, torch.device("cpu"))  # type: ignore[arg-type]
    # With a cache, transformers forgets the borders of packed samples.
    with torch.no_grad():
        logits = model(**batch.inputs, **({"use_cache": False} if causal else {})).logits
    if batch.columns is not None:
        logits = logits[:, -batch.inputs["input_ids"].shape[1] :][:, batch.columns]  # a prompt precedes them
    np.save(out, logits.numpy())


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries talk
    for line in sys.stdin:
        _compute(**json.loads(line))
        print(file=answers, flush=True)
