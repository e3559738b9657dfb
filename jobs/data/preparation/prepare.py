"""Prepares the data of a job: each of its sources once, and a manifest that assigns them to `train` and `eval`."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from cluster.errors import DataError, StorageError, StorageOutage
from cluster.text import byte_size, duration, many
from jobs.data.cutting import Cut, cut_of, format_cut
from jobs.data.preparation.assemble import Samples, SplitPlan, write_splits
from jobs.data.preparation.engines import Engine, Progress, Say, is_little, run, started
from jobs.data.preparation.fingerprint import SourceJob, check_formats, fingerprint_of_jobs, source_jobs
from jobs.data.preparation.parts import PartIndex, missing, parts_folder, read_index, store_part, stored_parts
from jobs.data.preparation.prepare_lock import PrepareLock
from jobs.data.preparation.shard_writer import remove_notes
from jobs.data.prepared import Manifest, Prepared, SplitManifest, manifest_path, write_manifest
from jobs.data.sources.bad_records import BadRecord, write_bad_records
from jobs.data.sources.chunks import held_out
from jobs.data.sources.content import empty_split
from jobs.data.sources.formats import first_of
from jobs.model_files.directory import longest_text
from jobs.model_files.tokenizer import pad_token_id, read_tokenizer
from jobs.run.paths import PREPARING, prepared_root
from jobs.spec.finetune import Spec
from jobs.storage import files as storage

ROWS, HELD_OUT = "rows", "held_out"  # the splits of a source
BAD_RECORDS_SHOWN = 10
# From this number of bad records on, reading may stop early because their share is too high.
BAD_RECORDS_TO_STOP = 1_000
_VERSIONS = ("fleetune", "transformers", "tokenizers", "pyarrow")


def prepare_source(job: SourceJob, engine: Engine, progress: Progress, say: Say) -> Prepared:
    """Prepare one source, continue an interrupted preparation, or find the source prepared.

    If another process is preparing it, wait for that process.

    Raises:
        DataError: a file cannot be read, changes during reading, does not fit the spec, or has too many bad records.
        StorageError: the storage cannot be written or is full.
    """
    lock = PrepareLock(storage.join(job.root, PREPARING), say)
    try:
        with lock.held_unless(lambda: _is_whole(job)) as held:
            if held and not _is_whole(job):  # it may have become whole while the lock was taken
                _set_damaged_aside(job, say)
                _prepare(job, engine, progress, say)
    except StorageError:
        if not _is_whole(job):  # otherwise another process has finished, and has removed the parts
            raise
    prepared = Prepared.open(job.root)
    _check_bad(job, prepared.manifest.bad_rows, prepared.manifest.records)
    return prepared


def _is_whole(job: SourceJob) -> bool:
    """Whether the source is prepared and all files are complete, since files may have been damaged or removed."""
    found = Prepared.find(job.root)
    return found is not None and not found.missing_files()


def _set_damaged_aside(job: SourceJob, say: Say) -> None:
    """Remove prepared data that is incomplete, so that it counts as not prepared. Needs the lock."""
    found = Prepared.find(job.root)
    if found is not None:
        wrong = found.missing_files()
        say(f"prepared data of {job.where} is damaged ({wrong[0]} is missing or has another size): preparing it again")
        storage.remove_file(manifest_path(job.root))
        for split in (ROWS, HELD_OUT):
            storage.remove_dir(storage.join(job.root, split))


def _prepare(job: SourceJob, engine: Engine, progress: Progress, say: Say) -> None:
    try:
        with _parts_are_kept():
            _tokenise(job, engine, progress, say)
        names = stored_parts(job.root)
        if missing(names, len(job.work.files)):  # possible also if this process was stopped while another one finished
            raise StorageError(
                f"parts of {job.where} that workers have stored are not in {job.root}: storage_path must be the same "
                "storage on every node. If the parts were removed in the meantime, prepare the data again"
            )
        parts = [read_index(job.root, name) for name in names]
        bad, records = _list_bad_records(job, parts)
        every = Samples.of(parts, job.causal)
        plans = _plans(job, every)
    except _TooManyBad:
        raise  # the parts are kept, because a higher max_bad_fraction would accept them
    except DataError:
        storage.remove_dir(parts_folder(job.root))  # the same source would fail again
        raise
    say(f"shuffling and writing {many(len(every), 'sample')}")
    with _parts_are_kept():
        splits = dict(zip([plan.name for plan in plans], write_splits(job.root, parts, every, plans), strict=True))
    write_manifest(
        job.root,
        Manifest(
            fingerprint=job.fingerprint,
            made_from=job.made_from,
            splits={name: (split,) for name, split in splits.items()},
            records=records,
            bad_rows=bad,
            cut=_cut(parts, job.work.seq_len),
            pad_token_id=pad_token_id(job.work.tokenizer.load()),
            versions={name: importlib.metadata.version(name) for name in _VERSIONS},
        ),
    )
    for name, split in splits.items():
        remove_notes(job.root, name, len(split.shards))
    storage.remove_dir(parts_folder(job.root))


@contextlib.contextmanager
def _parts_are_kept() -> Iterator[None]:
    """Add to errors of the storage that the tokenised parts are kept."""
    try:
        yield
    except StorageError as error:
        said = str(error).rstrip(".")
        raise type(error)(f"{said}. Tokenised parts are kept, and the next preparation uses them") from error


def _tokenise(job: SourceJob, engine: Engine, progress: Progress, say: Say) -> None:
    """Store every missing chunk as a part."""
    there = stored_parts(job.root)
    todo = missing(there, len(job.work.files))
    if there:
        kept = [read_index(job.root, name) for name in there]
        progress.keep(((job.where, part.name.file), part.position) for part in kept)
        samples = many(sum(len(part.num_tokens) for part in kept), "sample")
        say(f"going on with {job.where}, with {samples} tokenised already")
    if todo:
        files = many(len(todo), "file")
        say(f"tokenising {job.where}: {files}, {byte_size(sum(job.sizes[file] for file in todo))}")
    bad, records, read = 0, 0, dict[int, int]()
    for table in run(functools.partial(store_part, root=job.root), job.work, todo, engine, say):
        for facts in table.to_pylist():
            if facts["error"] is not None:
                raise (StorageOutage if facts["outage"] else StorageError)(facts["error"])
            if facts["fatal"] is not None:
                where = f"{job.work.files[facts['file']]}:{facts['fatal_line']}: " if facts["fatal_line"] else ""
                raise DataError(where + facts["fatal"])
            progress.add((job.where, facts["file"]), facts["position"], facts["samples"])
            bad, records = bad + facts["bad"], records + facts["records"]
            read[facts["file"]] = facts["position"]
        expected = records * sum(job.sizes) / max(sum(read.values()), 1)  # if the rest has equally long records
        if bad >= BAD_RECORDS_TO_STOP and bad > 2 * job.max_bad_fraction * expected:
            _list_bad_records(job, [read_index(job.root, name) for name in stored_parts(job.root)])


def _cut(parts: Iterable[PartIndex], seq_len: int) -> Cut:
    lengths = np.concatenate([np.zeros(0, np.int64), *(part.num_tokens + part.cut for part in parts)])
    values, counts = np.unique(lengths, return_counts=True)
    return cut_of(dict(zip(values.tolist(), counts.tolist(), strict=True)), seq_len)


def _list_bad_records(job: SourceJob, parts: Sequence[PartIndex]) -> tuple[int, int]:
    """Write the list of the records that were set aside. Returns their number, and that of all records.

    Raises DataError if too many are bad.
    """
    files = job.work.files
    bad = [BadRecord(files[part.name.file], line, reason) for part in parts for line, reason in part.bad]
    records = sum(part.records for part in parts)
    write_bad_records(bad_records_path(job.root), bad)
    _check_bad(job, len(bad), records)
    return len(bad), records


def bad_records_path(root: str) -> str:
    """Return the path of the list of a source's records that were set aside."""
    return storage.join(root, "bad_rows.jsonl")


class _TooManyBad(DataError):
    """More records are bad than may be set aside."""


def _check_bad(job: SourceJob, bad: int, records: int) -> None:
    """Raise DataError if too many records are bad, of which there is a list."""
    if bad <= job.max_bad_fraction * records:
        return
    path = bad_records_path(job.root)
    shown = [BadRecord(**json.loads(line)) for line in storage.read_bytes(path).splitlines()[:BAD_RECORDS_SHOWN]]
    raise _TooManyBad(
        f"{bad:,} of {many(records, 'record')} ({bad / records:.1%}) of {job.where} cannot be used, but at most "
        f"{100 * job.max_bad_fraction:g}% may be set aside (data.max_bad_fraction). Correct the data, data.format or "
        f"data.columns. The first ones (all: {path}):\n" + first_of(shown, BAD_RECORDS_SHOWN)
    )


def _plans(job: SourceJob, every: Samples) -> list[SplitPlan]:
    members = {ROWS: np.arange(len(every))}
    if job.eval_fraction is not None:
        held = held_out(every.content, job.eval_fraction)
        members = {ROWS: np.flatnonzero(~held), HELD_OUT: np.flatnonzero(held)}
    for name, numbers in members.items():
        if not len(numbers):
            raise DataError(_empty(job, name, len(every)))
    return [
        SplitPlan.of(name, numbers, every, f"{job.fingerprint}/{name}", job.pack_to)
        for name, numbers in members.items()
    ]


def _empty(job: SourceJob, split: str, samples: int) -> str:
    if job.eval_fraction is None or not samples:
        return f"no row of {job.where} ({job.path}) can be used: give a file with at least one sample"
    name = "train" if split == ROWS else "eval"
    return empty_split(job.eval_fraction, samples, job.path, name)


def prepare(
    spec: Spec, model_dir: str, *, engine: Engine, say: Say, warn: Say | None = None, plain_up_to: int = 0
) -> Prepared:
    """Prepare the data of a spec, or find it prepared.

    Args:
        model_dir: directory (or fsspec URL) with the tokenizer; only this process reads it.
        engine: "plain" tokenises in this process; "ray" on the cluster, after `ray.init`. Both write the same bytes.
        plain_up_to: bytes of text that this process tokenises with either engine, if none of the job's data is prepared
            yet and no function of the user reads it.
        say: receives progress, one line at a time.
        warn: receives warnings; None: `say` does.

    Raises:
        DataError: a file, column or label is wrong, too many records are bad, or a split would be empty.
        StorageError: storage_path cannot be written.
    """
    began = time.monotonic()
    tokenizer = read_tokenizer(model_dir, spec.model.chat_template)
    jobs = source_jobs(spec, tokenizer, say)
    digest, made_from = fingerprint_of_jobs(jobs)
    root = prepared_root(spec.storage_path, digest)
    found = Prepared.find(root)
    every = [job for of_role in jobs.values() for job in of_role]
    new = [job for job in every if Prepared.find(job.root) is None]
    # Only if nothing is prepared: prepared data may turn out to be damaged, and be large.
    if len(new) == len(every) and _soon_done(new, plain_up_to):
        engine = "plain"
    workers = started(engine) if new else None
    doubts = check_formats(new, tokenizer, model_dir)
    progress = Progress(say, sum(sum(job.sizes) for job in new))
    sources = {job.where: prepare_source(job, engine, progress, say) for job in every}
    del workers
    most = longest_text(model_dir)
    tell = warn or (lambda text: say(f"warning: {text}"))
    cuts = (format_cut(where, source.manifest.cut, spec.data.seq_len, most) for where, source in sources.items())
    for words in filter(None, (*doubts, *cuts)):
        tell(words)
    if found is not None and not new:
        say(f"data is prepared already: {root}")
        return found
    manifest = _joined(digest, made_from, jobs, sources)
    write_manifest(root, manifest)
    time_words = f"in {duration(time.monotonic() - began)}" if new else "(their sources were prepared already)"
    say(f"prepared {_summary(manifest, spec, time_words)}")
    return Prepared.open(root)


def _soon_done(jobs: list[SourceJob], most_bytes: int) -> bool:
    """Whether the sources are small and no function of the user, which may be slow, reads them."""
    files = [(file, size) for job in jobs for file, size in zip(job.work.files, job.sizes, strict=True)]
    return is_little(files, most_bytes) and all(job.work.code is None for job in jobs)


def _joined(
    digest: str, made_from: dict[str, Any], jobs: dict[str, list[SourceJob]], sources: dict[str, Prepared]
) -> Manifest:
    """Return the manifest of a job's data, which names the splits of its sources."""
    of_sources = [source.manifest for source in sources.values()]
    return Manifest(
        fingerprint=digest,
        made_from=made_from,
        splits=_splits(jobs, sources),
        records=sum(one.records for one in of_sources),
        bad_rows=sum(one.bad_rows for one in of_sources),
        pad_token_id=of_sources[0].pad_token_id,
        versions=of_sources[0].versions,
    )


def _splits(jobs: dict[str, list[SourceJob]], sources: dict[str, Prepared]) -> dict[str, tuple[SplitManifest, ...]]:
    """Assemble the splits of a job's data from its sources' splits."""

    def parts(role: str, split: str) -> tuple[SplitManifest, ...]:
        of_role = jobs.get(role, ())
        return tuple(
            sources[job.where].manifest.splits[split][0].model_copy(update={"folder": f"{job.fingerprint}/{split}"})
            for job in of_role
            if split in sources[job.where].manifest.splits
        )

    held_out, general = parts("eval", ROWS) or parts("train", HELD_OUT), parts("general", ROWS)
    splits = {"train": parts("train", ROWS), "eval": held_out, "general": general}
    return {name: found for name, found in splits.items() if found}


def _summary(manifest: Manifest, spec: Spec, time_words: str) -> str:
    samples = sum(part.samples for parts in manifest.splits.values() for part in parts)
    words = []
    for name, parts in manifest.splits.items():
        rows, tokens = sum(part.rows for part in parts), sum(part.tokens for part in parts)
        filled = f", {tokens / (rows * spec.data.seq_len):.1%} full" if spec.packed else ""
        words.append(f"{many(rows, f'{name} row')} of {many(tokens, 'token')}{filled}")
    if manifest.bad_rows:
        words.append(f"{many(manifest.bad_rows, 'bad record')} set aside")
    divided = f" of {many(manifest.records, 'record')}" if samples > manifest.records else ""  # long texts, dialogues
    return f"{many(samples, 'sample')}{divided} {time_words}: {', '.join(words)}"
