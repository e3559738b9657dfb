"""Prepares the data of a job: each of its sources once, and a manifest that assigns them to `train` and `eval`."""

from __future__ import annotations

from cluster.text import duration, many
from jobs.data.cutting import format_cut
from jobs.data.preparation.engines import Engine, is_little, started
from jobs.data.preparation.fingerprint import SourceJob, check_formats, fingerprint_of_jobs, source_jobs
from jobs.data.preparation.prepare_source import HELD_OUT, ROWS, prepare_source
from jobs.data.preparation.progress import Progress, Say
from jobs.data.prepared import Manifest, Prepared, SplitManifest, write_manifest
from jobs.model_files.tokenizer import read_tokenizer
from jobs.run.paths import prepared_root
from jobs.spec.finetune import Spec


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
        DataError: a file, column or label is wrong, too many rows are bad, or a split would be empty.
        StorageError: storage_path cannot be written.
    """
    tokenizer = read_tokenizer(model_dir)
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
    check_formats(every, tokenizer, model_dir)
    progress = Progress(say, sum(sum(job.sizes) for job in new))
    sources = {job.where: prepare_source(job, engine, progress, say) for job in every}
    del workers
    cuts = [format_cut(where, source.manifest.cut, spec.data.seq_len) for where, source in sources.items()]
    for words in filter(None, cuts):
        if warn is None:
            say(f"warning: {words}")
        else:
            warn(words)
    if found is not None and not new:
        say(f"data is prepared already: {root}")
        return found
    manifest = Manifest(
        fingerprint=digest,
        made_from=made_from,
        splits=_splits(jobs, sources),
        records=sum(source.manifest.records for source in sources.values()),
        bad_rows=sum(source.manifest.bad_rows for source in sources.values()),
        pad_token_id=next(iter(sources.values())).manifest.pad_token_id,
        versions=next(iter(sources.values())).manifest.versions,
    )
    write_manifest(root, manifest)
    samples = sum(part.samples for parts in manifest.splits.values() for part in parts)
    time_words = f"in {duration(progress.elapsed_s())}" if new else "(their sources were prepared already)"
    done = f"prepared {many(samples, 'sample')} {time_words}"
    say(f"{done}: {_summary(manifest, spec)}")
    return Prepared.open(root)


def _soon_done(jobs: list[SourceJob], most_bytes: int) -> bool:
    """Whether the sources are small and no function of the user, which may be slow, reads them."""
    files = [(file, size) for job in jobs for file, size in zip(job.work.files, job.sizes, strict=True)]
    return is_little(files, most_bytes) and all(job.work.code is None for job in jobs)


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


def _summary(manifest: Manifest, spec: Spec) -> str:
    words = [_split_summary(name, parts, spec) for name, parts in manifest.splits.items()]
    if manifest.bad_rows:
        words.append(f"{many(manifest.bad_rows, 'bad row')} set aside")
    return ", ".join(words)


def _split_summary(name: str, parts: tuple[SplitManifest, ...], spec: Spec) -> str:
    rows, tokens = sum(part.rows for part in parts), sum(part.tokens for part in parts)
    filled = f", {tokens / (rows * spec.data.seq_len):.1%} full" if spec.packed else ""
    return f"{many(rows, f'{name} row')} of {many(tokens, 'token')}{filled}"
