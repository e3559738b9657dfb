"""Training fits into an address space that is smaller than the prepared data: no process holds it whole.

The data is one shard under many names (hard links), so that gigabytes of it take the disk of one shard.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cluster.errors import DataError
from jobs.data.order.row_order import ShuffledRows
from jobs.data.prepared import (
    IGNORE_INDEX,
    INDEX_SCHEMA,
    ROW_SCHEMA,
    FileEntry,
    Manifest,
    Prepared,
    SplitManifest,
    write_manifest,
)
from jobs.spec.load import dump_spec
from jobs.storage.journal import read_journal
from tests.support import tiny
from tests.support.gangs import ROOT, torchrun

TOKENS = 1024
ROWS_PER_BLOCK = 16  # a quarter of the usual, so that a few hundred rows come from every shard
BLOCKS_PER_SHARD = 2048
ROWS_PER_SHARD = ROWS_PER_BLOCK * BLOCKS_PER_SHARD
ROWS_PER_STEP, STEPS = 16, 40
VOCABULARY = 64
# Of address space and of resident memory, beyond what a worker takes on little data: for the index of all rows (20
# bytes each) and the blocks that are kept.
MARGIN_BYTES = 200 * 2**20
LIMIT_SHARE = 0.6  # of the data's size


def write_shard(path: pathlib.Path, blocks: int) -> None:
    """Rows of random tokens, full ones; row i is sample i."""
    path.parent.mkdir(parents=True)
    draw = np.random.default_rng(0)
    ends = np.arange(ROWS_PER_BLOCK + 1, dtype=np.int32)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, ROW_SCHEMA) as writer:
        for block in range(blocks):
            ids = draw.integers(0, VOCABULARY, (ROWS_PER_BLOCK, TOKENS), dtype=np.int32)
            labels = ids.copy()
            labels[:, 0] = IGNORE_INDEX
            tokens = [pa.ListArray.from_arrays(ends * TOKENS, part.reshape(-1)) for part in (ids, labels)]
            lengths = pa.ListArray.from_arrays(ends, np.full(ROWS_PER_BLOCK, TOKENS, dtype=np.int32))
            numbers = np.arange(ROWS_PER_BLOCK, dtype=np.int64) + block * ROWS_PER_BLOCK
            columns = [*tokens, lengths, pa.ListArray.from_arrays(ends, numbers)]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=ROW_SCHEMA))


def make_data(root: pathlib.Path, shards: int, blocks: int) -> Prepared:
    """Prepared data of `shards` times the same `blocks` blocks."""
    folder = root / "train"
    first = folder / "shard-00000.arrow"
    write_shard(first, blocks)
    for number in range(1, shards):
        os.link(first, folder / f"shard-{number:05d}.arrow")
    in_shard = blocks * ROWS_PER_BLOCK
    rows = shards * in_shard
    samples = pa.ListArray.from_arrays(
        np.arange(rows + 1, dtype=np.int32), np.tile(np.arange(in_shard, dtype=np.int64), shards)
    )
    counts = [np.full(rows, TOKENS, dtype=np.int32), np.full(rows, TOKENS - 1, dtype=np.int32)]
    with pa.OSFile(str(folder / "index.arrow"), "wb") as sink, pa.ipc.new_file(sink, INDEX_SCHEMA) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays([*map(pa.array, counts), samples], schema=INDEX_SCHEMA))
    split = SplitManifest(
        rows=rows,
        samples=rows,
        tokens=rows * TOKENS,
        targets=rows * (TOKENS - 1),
        longest_row=TOKENS,
        rows_per_block=ROWS_PER_BLOCK,
        blocks_per_shard=blocks,
        shards=tuple(entry(folder, f"shard-{number:05d}.arrow") for number in range(shards)),
        index=entry(folder, "index.arrow"),
    )
    manifest = Manifest(fingerprint=root.name, made_from={}, splits={"train": split}, pad_token_id=0, versions={})
    write_manifest(str(root), manifest)
    return Prepared.open(str(root))


def entry(folder: pathlib.Path, name: str) -> FileEntry:
    return FileEntry(name=name, bytes=(folder / name).stat().st_size, sha256="of no interest here")


def save_model(folder: pathlib.Path) -> pathlib.Path:
    """So small that thousands of tokens a step take no time."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=TOKENS,
        bos_token_id=1,
        eos_token_id=0,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def shards_of(rows: int, seed: int) -> set[int]:
    """The shards from which a run takes rows."""
    order = ShuffledRows(rows, ROWS_PER_BLOCK, seed)
    return set(np.unique(order.rows_between(0, STEPS * ROWS_PER_STEP) // ROWS_PER_SHARD).tolist())


def train(
    folder: pathlib.Path, model: pathlib.Path, prepared: Prepared, seed: int, steps: int, limit: int
) -> dict[str, int]:
    """Train under a limit on the address space of each worker (0 is none); the most that a worker took."""
    (folder / "taken").mkdir(parents=True)
    spec = tiny.spec_of(
        folder, model, folder / "none", data__seq_len=TOKENS, train__max_steps=steps, seed=seed,
        train__global_batch_size=ROWS_PER_STEP, train__per_device_train_batch_size=2,
    )  # fmt: skip
    (folder / "spec.json").write_bytes(dump_spec(spec))
    case: dict[str, Any] = {
        "name": "run", "spec": str(folder / "spec.json"), "run_root": str(folder / "run"),
        "prepared_root": prepared.root, "logits": "", "stop_at": None, "faults": {},
    }  # fmt: skip
    (folder / "cases.json").write_text(json.dumps([case]))
    done = torchrun(2, *limited(limit, folder / "taken", "gang_cases.py"), str(folder / "cases.json"))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-20000:]
    assert [record["step"] for record in read_journal(str(folder / "run/metrics"))] == list(range(1, steps + 1))
    taken = [json.loads(path.read_text()) for path in (folder / "taken").iterdir()]
    assert len(taken) == 2
    return {name: max(one[name] for one in taken) for name in ("mapped", "resident")}


def limited(limit: int, folder: pathlib.Path, program: str) -> list[str]:
    support = ROOT / "tests/support"
    return [str(support / "limited.py"), str(limit), str(folder), str(support / program)]


@pytest.mark.slow
def test_workers_train_on_more_data_than_their_address_space_can_hold(tmp_path: pathlib.Path) -> None:
    """The only one with prepared data that is larger than the memory that a worker may have."""
    model = save_model(tmp_path / "model")
    usual = train(tmp_path / "on-little", model, make_data(tmp_path / "little", 1, 32), seed=0, steps=10, limit=0)
    limit = usual["mapped"] + MARGIN_BYTES
    shards = -(-int(limit / LIMIT_SHARE) // (ROWS_PER_SHARD * TOKENS * 8))
    much = make_data(tmp_path / "much", shards, BLOCKS_PER_SHARD)
    assert sum(shard.bytes for shard in much.manifest.splits["train"][0].shards) > limit / LIMIT_SHARE

    everything_mapped = [sys.executable, *limited(limit, tmp_path, "map_all.py"), str(tmp_path / "much/train")]
    refused = subprocess.run(everything_mapped, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert refused.returncode != 0 and "Cannot allocate memory" in refused.stderr, refused

    seed = max(range(1000), key=lambda seed: len(shards_of(shards * ROWS_PER_SHARD, seed)))
    visited = len(shards_of(shards * ROWS_PER_SHARD, seed))
    assert visited == shards or visited * ROWS_PER_SHARD * TOKENS * 8 > limit
    taken = train(tmp_path / "on-much", model, much, seed, STEPS, limit)
    assert taken["resident"] - usual["resident"] < MARGIN_BYTES


def test_a_shard_that_is_cut_off_is_an_error_and_no_crash(tmp_path: pathlib.Path) -> None:
    prepared = make_data(tmp_path / "cut", 1, 8)
    split = prepared.split("train")
    assert split.read_rows(np.array([3]))["sample_ids"].to_pylist() == [[3]]
    shard = tmp_path / "cut/train/shard-00000.arrow"
    os.truncate(shard, shard.stat().st_size // 2)
    with pytest.raises(DataError, match=r"shard-00000\.arrow"):
        split.read_rows(np.array([7 * ROWS_PER_BLOCK]))
    shutil.rmtree(tmp_path / "cut/train")
    with pytest.raises(DataError, match=r"index\.arrow"):
        _ = prepared.split("train").index
