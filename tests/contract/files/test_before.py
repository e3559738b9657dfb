"""Files that an older release has written are read as it wrote them.

`before_the_rooms/` was written by the commit b3b718e (two workers under torchrun, six steps of a tiny GPT-2 on invented
sentences), with checkpoints of format 1. Names of machines and folders are replaced, and tensors are left out.
"""

from __future__ import annotations

import json
import pathlib

import numpy as np

from jobs.data.order.digest_chain import chain_of, from_hex, row_digests
from jobs.data.order.stream import step_plan
from jobs.data.prepared import Prepared
from jobs.run.checkpoints import committed_steps, read_commit
from jobs.run.outcome import Status, read_outcome
from jobs.run.paths import JobPaths, prepared_root
from jobs.run.record import read_steps
from jobs.run.summary import describe_run
from jobs.spec.load import load_spec

BEFORE = pathlib.Path(__file__).with_name("before_the_rooms")
RUN = JobPaths(str(BEFORE / "run"))
STEPS, SAVED = 6, 3


def test_prepared_rows_and_their_order_are_the_same() -> None:
    """The chain of the run's last step is computed from the rows and the spec."""
    fingerprint = json.loads(pathlib.Path(RUN.manifest).read_text())["data_fingerprint"]
    split = Prepared.open(prepared_root(str(BEFORE), fingerprint)).split("train")
    rows = split.read_rows(np.arange(len(split)))
    assert sum(map(len, rows["input_ids"].to_pylist())) == 395 and rows["input_ids"][0].as_py()
    records = read_steps(RUN)
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    plan = step_plan(load_spec(RUN.spec), split)
    assert from_hex(records[-1]["chain"]) == chain_of(plan, row_digests(split.index.sample_ids), STEPS)


def test_a_checkpoint_is_read() -> None:
    assert committed_steps(RUN) == [SAVED]
    commit = read_commit(RUN, SAVED)
    assert (commit.step, commit.num_workers, commit.optimizer_step) == (SAVED, 2, SAVED)
    assert commit.loss == read_steps(RUN)[SAVED - 1]["loss"] and commit.chain == read_steps(RUN)[SAVED - 1]["chain"]


def test_a_run_is_shown_with_its_outcome_and_events() -> None:
    outcome = read_outcome(RUN)
    assert outcome is not None and outcome.status is Status.SUCCEEDED and outcome.troubles == ()
    shown = describe_run(RUN.root)
    assert (shown.summary.step, shown.summary.status) == (STEPS, Status.SUCCEEDED) and len(shown.events) > 5
    assert shown.summary.metrics["eval_loss"] == outcome.metrics["eval_loss"]
