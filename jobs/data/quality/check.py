"""`fleetune data check`: reads and tokenises every record as in training, and examines it. Nothing is prepared."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cluster.text import byte_size, many
from jobs.data.order.row_order import GROUP_STEPS
from jobs.data.preparation.engines import Engine, Progress, Say, run, started
from jobs.data.preparation.fingerprint import SourceJob, check_formats, fingerprint_of_jobs, source_jobs
from jobs.data.preparation.packing import pack, shuffle
from jobs.data.quality.facts import FACTS_SCHEMA, facts_of
from jobs.data.quality.findings import EVAL, ROLES, TRAIN, Facts, findings_of, label_counts, label_name
from jobs.data.quality.report import DataReport, Histogram, LabelCount, LongSample, Packing, SourceReport
from jobs.data.sources.bad_records import BadRecord, write_bad_records
from jobs.data.sources.chunks import held_out
from jobs.data.sources.content import empty_split
from jobs.model_files.tokenizer import read_tokenizer
from jobs.planning import plan_batching
from jobs.run.paths import check_folder
from jobs.spec.finetune import Spec
from jobs.storage import files as storage

LONGEST = 5  # longest samples that the report shows
_BINS = 24  # of a histogram, about


def check(spec: Spec, model_dir: str, *, engine: Engine, say: Say) -> DataReport:
    """Examine all samples of a spec's data.

    For the arguments, see `jobs.data.preparation.prepare.prepare`.

    Raises:
        DataError: no file matches, or the tokenizer is unsuitable. Problems in the files are part of the report.
        StorageError: the storage cannot be read or written.
    """
    tokenizer = read_tokenizer(model_dir, spec.model.chat_template)
    jobs = {role: found for role, found in source_jobs(spec, tokenizer, say).items() if role in ROLES}
    every = [job for of_role in jobs.values() for job in of_role]
    workers = started(engine)
    for words in check_formats(every, tokenizer, model_dir):
        say(f"warning: {words}")
    progress = Progress(say, sum(sum(job.sizes) for job in every))
    tables = [_facts(job, engine, progress, say) for job in every]
    del workers
    digest, _ = fingerprint_of_jobs(jobs)
    facts = _joined(spec, every, tables)
    say(f"comparing {many(len(facts.good), 'sample')}")
    bad_rows = _list_bad_records(facts, storage.join(check_folder(spec.storage_path, digest), "bad_rows.jsonl"))
    return _report(spec, every, facts, digest, bad_rows)


def _facts(job: SourceJob, engine: Engine, progress: Progress, say: Say) -> tuple[Any, int]:
    """Return the facts of one source in source order, and the number of its records."""
    todo = {file: frozenset[int]() for file in range(len(job.work.files))}
    tables, records = [FACTS_SCHEMA.empty_table()], 0
    say(f"tokenising {job.where}: {many(len(todo), 'file')}, {byte_size(sum(job.sizes))}")
    for table in run(facts_of, job.work, todo, engine, say):
        position, file = table["position"][0].as_py(), table["file"][0].as_py()
        records += pc.sum(table["records"]).as_py() or 0  # Ray may split a chunk; its first row has the number
        real = table.filter(pc.greater_equal(table["line"], 0))
        progress.add((job.where, file), position, real.num_rows)
        tables.append(real)
    return pa.concat_tables(tables), records


def _joined(spec: Spec, jobs: list[SourceJob], found: list[tuple[Any, int]]) -> Facts:
    tables = [one for one, _ in found]
    table = pa.concat_tables(tables).combine_chunks()
    source = np.repeat(np.arange(len(tables), dtype=np.int32), [one.num_rows for one in tables])
    of_eval = np.array([job.where.startswith("data.eval") for job in jobs], dtype=bool)
    held = of_eval[source] if len(source) else np.zeros(0, bool)
    if spec.data.eval_fraction is not None:
        held = held_out(pc.fill_null(table["content"], 0).to_numpy(), spec.data.eval_fraction)
    return Facts(
        table=table,
        source=source,
        records=tuple(records for _, records in found),
        role=np.where(held, EVAL, TRAIN).astype(np.int8),
        files=tuple(job.work.files for job in jobs),
        labels=spec.data.labels,
        num_labels=spec.num_labels,
        seq_len=spec.data.seq_len,
    )


def _list_bad_records(facts: Facts, path: str) -> str | None:
    if not len(facts.bad):
        return None
    reasons = facts.table["reason"]
    write_bad_records(path, (BadRecord(*facts.where(row), reasons[row].as_py()) for row in facts.bad.tolist()))
    return path


def _report(spec: Spec, jobs: list[SourceJob], facts: Facts, digest: str, bad_rows: str | None) -> DataReport:
    findings, compared = findings_of(facts)
    blocked = _blocked(spec, jobs, facts)
    grave = any(finding.severity != "note" for finding in findings)
    samples = {role: len(facts.of_role(role)) for role in (TRAIN, EVAL)}
    return DataReport(
        name=spec.name,
        created_at=datetime.datetime.now(datetime.UTC),
        fingerprint=digest,
        verdict="errors" if blocked else "warnings" if grave else "ok",
        blocked=blocked,
        sources=tuple(_source(spec, job, facts, number) for number, job in enumerate(jobs)),
        records=sum(facts.records),
        samples=len(facts.good),
        train_samples=samples[TRAIN],
        eval_samples=samples[EVAL],
        tokens=int((facts.numbers("tokens") - facts.numbers("cut"))[facts.good].sum()),
        targets=int(facts.numbers("targets")[facts.good].sum()),
        seq_len=spec.data.seq_len,
        max_bad_fraction=spec.data.max_bad_fraction,
        lengths={ROLES[one]: _histogram(facts, one) for one, count in samples.items() if count},
        length_quantiles={ROLES[one]: _quantiles(facts, one) for one, count in samples.items() if count},
        labels=_labels(facts),
        longest=_longest(facts),
        packing=_packing(spec, facts),
        near_duplicates_looked_at=compared,
        findings=findings,
        bad_rows_file=bad_rows,
    )


def _blocked(spec: Spec, jobs: list[SourceJob], facts: Facts) -> str | None:
    """Return why `prepare` would stop; None if it would not."""
    fatal = facts.bad[pc.fill_null(facts.table["fatal"], False).to_numpy()[facts.bad]]
    if len(fatal):
        where = facts.example(int(fatal[0]))
        return f"{where.file}:{where.line}: {where.text}" if where.line else where.text
    for number, job in enumerate(jobs):
        bad, records = int((facts.source[facts.bad] == number).sum()), facts.records[number]
        if bad > spec.data.max_bad_fraction * records:
            return (
                f"{bad:,} of {many(records, 'record')} of {job.where} cannot be used, more than data.max_bad_fraction "
                f"({spec.data.max_bad_fraction:g})"
            )
        role = facts.role[facts.good[facts.source[facts.good] == number]]
        if not len(role):
            return f"{job.where} ({job.path}) has no sample"
        if job.eval_fraction is not None and len(set(role.tolist())) < 2:
            which = "eval" if role[0] == TRAIN else "train"
            return empty_split(job.eval_fraction, len(role), job.path, which)
    return None


def _source(spec: Spec, job: SourceJob, facts: Facts, number: int) -> SourceReport:
    good = facts.good[facts.source[facts.good] == number]
    tokens, cut = facts.numbers("tokens")[good], facts.numbers("cut")[good]
    return SourceReport(
        where=job.where,
        path=job.path,
        format=job.work.reading.format,
        files=len(job.work.files),
        bytes=sum(job.sizes),
        records=facts.records[number],
        bad=int((facts.source[facts.bad] == number).sum()),
        samples=len(good),
        tokens=int(tokens.sum() - cut.sum()),
        targets=int(facts.numbers("targets")[good].sum()),
        cut_samples=int((cut > 0).sum()),
        cut_tokens=int(cut.sum()),
        weight=spec.data.train[number].weight if number < len(spec.data.train) else None,  # train sources come first
    )


def _histogram(facts: Facts, role: int) -> Histogram:
    tokens = facts.numbers("tokens")[facts.of_role(role)]
    every = facts.numbers("tokens")[facts.good]
    width = max(1, _nice(float(np.quantile(every, 0.995)) / _BINS))
    edges = np.arange(0, int(np.quantile(every, 0.995)) + 2 * width, width, dtype=float)
    edges = np.append(edges, float(every.max() + 1)) if every.max() >= edges[-1] else edges
    counts, _ = np.histogram(tokens, edges)
    return Histogram(edges=tuple(edges.tolist()), counts=tuple(counts.tolist()))


def _nice(width: float) -> int:
    """Return the smallest of 1, 2 or 5 times a power of ten that is at least `width`."""
    numbers: Iterator[int] = (factor * 10**power for power in itertools.count() for factor in (1, 2, 5))
    return next(number for number in numbers if number >= width)


def _quantiles(facts: Facts, role: int) -> dict[str, float]:
    tokens = facts.numbers("tokens")[facts.of_role(role)]
    named = {f"p{share:.0f}": float(np.percentile(tokens, share)) for share in (50, 90, 99)}
    return {"mean": float(tokens.mean()), **named, "max": float(tokens.max())}


def _labels(facts: Facts) -> tuple[LabelCount, ...]:
    if facts.num_labels is None or not len(facts.good):
        return ()
    train, held = label_counts(facts, TRAIN), label_counts(facts, EVAL)
    return tuple(
        LabelCount(label=label_name(facts, number), train=int(train[number]), eval=int(held[number]))
        for number in range(len(train))
    )


def _longest(facts: Facts) -> tuple[LongSample, ...]:
    tokens = facts.numbers("tokens")[facts.good]
    rows = facts.good[np.argsort(-tokens, kind="stable")[:LONGEST]]
    examples = [(facts.example(int(row)), int(facts.numbers("tokens")[row])) for row in rows]
    return tuple(LongSample(file=one.file, line=one.line, tokens=count, text=one.text) for one, count in examples)


def _packing(spec: Spec, facts: Facts) -> Packing | None:
    rows = facts.of_role(TRAIN)
    if not len(rows):
        return None
    lengths = facts.table["lengths"].combine_chunks().take(rows).flatten().to_numpy()
    seq_len = spec.data.seq_len
    if spec.packed:
        count = len(pack(lengths, seq_len))
        return Packing(packed=True, rows=count, seq_len=seq_len, density=float(lengths.sum() / (count * seq_len)))
    padded = _padded(lengths, spec)
    return Packing(packed=False, rows=len(lengths), seq_len=seq_len, density=float(lengths.sum() / padded))


def _padded(lengths: npt.NDArray[np.int32], spec: Spec) -> int:
    """Count the tokens, with padding, of all forward passes of an epoch; approximates how training groups rows."""
    batching = plan_batching(spec)
    shuffled = lengths[shuffle(len(lengths), "padding")]
    group = batching.rows * (GROUP_STEPS if spec.grouped_by_length else 1)
    total = 0
    for start in range(0, len(shuffled), group):
        some = shuffled[start : start + group]
        some = np.sort(some) if spec.grouped_by_length else some
        for place in range(0, len(some), batching.per_device):
            rows = some[place : place + batching.per_device]
            total += len(rows) * int(rows.max())
    return total
