"""Prepare: read, tokenise, split, shuffle and pack once; write the rows that all runs with the same input share."""

from __future__ import annotations

import importlib.metadata
import tempfile

import numpy as np
import numpy.typing as npt

from jobs.data.blocks import Work
from jobs.data.fingerprint import PREPARE_VERSION, fingerprint, fingerprint_of
from jobs.data.formats import expand
from jobs.data.pack import one_a_row, pack, shuffle
from jobs.data.prepared import Manifest, Prepared, SplitManifest, SplitWriter, write_manifest
from jobs.data.scratch import Samples
from jobs.data.sources import Engine, Progress, Say, Source, read_source, tables, write_bad_rows
from jobs.data.tokenizer import TokenizerFiles, check_tokenizer, pad_token_id, read_tokenizer
from jobs.errors import DataError
from jobs.paths import prepared_root
from jobs.spec import Spec

__all__ = ["PREPARE_VERSION", "fingerprint", "prepare"]

_VERSIONS = ("fleetune", "transformers", "tokenizers", "pyarrow")
Members = npt.NDArray[np.int64]  # numbers of the samples of one split, ascending


def prepare(spec: Spec, model_dir: str, *, engine: Engine, say: Say) -> Prepared:
    """Prepare the data of a spec, or find it prepared.

    Args:
        model_dir: directory (or fsspec URL) with the tokenizer; only this process reads it.
        engine: "plain" tokenises in this process; "ray" on the cluster, after `ray.init`. Both write the same bytes.
        say: takes progress, a line at a time.

    Raises:
        DataError: a file, column or label does not fit, over 1 % of the rows are bad, or a split is left empty.
        StorageError: storage_path cannot be written.
    """
    tokenizer = read_tokenizer(model_dir)
    digest, made_from = fingerprint_of(spec, tokenizer)
    root = prepared_root(spec.storage_path, digest)
    found = Prepared.find(root)
    if found is not None:
        say(f"data is prepared already: {root}")
        return found
    check_tokenizer(tokenizer.load(), spec.data.format, model_dir)
    progress = Progress(say)
    with tempfile.TemporaryDirectory(prefix="fleetune-tokens-") as folder:
        sources = _read_sources(spec, tokenizer, engine, progress, say, folder)
        bad_rows = write_bad_rows(root, sources.values())
        splits = {
            name: _write_split(spec, root, name, samples, members, digest)
            for name, (samples, members) in _split(spec, sources).items()
        }
        del sources  # it maps files of the folder
    manifest = Manifest(
        fingerprint=digest,
        made_from=made_from,
        splits=splits,
        bad_rows=bad_rows,
        pad_token_id=pad_token_id(tokenizer.load()),
        versions={name: importlib.metadata.version(name) for name in _VERSIONS},
    )
    write_manifest(root, manifest)
    say(f"prepared {progress.so_far()}: {_summary(manifest, spec)}")
    return Prepared.open(root)


def _read_sources(
    spec: Spec, tokenizer: TokenizerFiles, engine: Engine, progress: Progress, say: Say, folder: str
) -> dict[str, Source]:
    patterns = {"train": spec.data.train} | ({"eval": spec.data.eval} if spec.data.eval else {})
    sources = {}
    for name, pattern in patterns.items():
        work = Work(expand(pattern), spec.data, spec.num_labels, tokenizer)
        sources[name] = read_source(name, work, tables(work, engine, say), folder, progress)
    return sources


def _split(spec: Spec, sources: dict[str, Source]) -> dict[str, tuple[Samples, Members]]:
    fraction = spec.data.eval_fraction
    if fraction is None:
        members = {name: (source.samples, np.arange(len(source.samples))) for name, source in sources.items()}
    else:
        samples = sources["train"].samples
        held = samples.content < np.uint64(int(fraction * 2**64))
        members = {"train": (samples, np.flatnonzero(~held)), "eval": (samples, np.flatnonzero(held))}
    for name, (samples, numbers) in members.items():
        if not len(numbers):
            raise DataError(_empty(spec, name, len(samples)))
    return members


def _empty(spec: Spec, name: str, samples: int) -> str:
    data = spec.data
    if data.eval_fraction is None:
        return f"no row of data.{name} ({getattr(data, name)}) can be used: give a file with at least one sample"
    return (
        f"data.eval_fraction ({data.eval_fraction}) of {samples} samples of {data.train} leaves none for {name} (equal "
        "samples stay together): choose another fraction, or give data.eval"
    )


def _write_split(spec: Spec, root: str, name: str, samples: Samples, members: Members, digest: str) -> SplitManifest:
    causal = spec.model.task == "causal-lm"
    order = members[shuffle(len(members), f"{digest}/{name}")]
    rows = pack(samples.lengths[order], spec.data.seq_len) if spec.packed else one_a_row(len(order))
    writer = SplitWriter(root, name, causal)
    writer.write(samples.row(order[list(row)]) for row in rows)
    return writer.close()


def _summary(manifest: Manifest, spec: Spec) -> str:
    parts = [_split_summary(name, split, spec) for name, split in manifest.splits.items()]
    if manifest.bad_rows:
        parts.append(f"{manifest.bad_rows:,} bad rows set aside")
    return ", ".join(parts)


def _split_summary(name: str, split: SplitManifest, spec: Spec) -> str:
    filled = f", {split.tokens / (split.rows * spec.data.seq_len):.1%} full" if spec.packed else ""
    return f"{split.rows:,} {name} rows of {split.tokens:,} tokens{filled}"
