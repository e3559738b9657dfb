"""Computes the fingerprint of everything that prepared data depends on: equal fingerprints mean equal shards."""

from __future__ import annotations

import hashlib
import json
import posixpath
from dataclasses import dataclass
from typing import Any

from cluster.text import byte_size
from jobs.data.preparation.engines import Say
from jobs.data.sources.chat_template import DATE
from jobs.data.sources.chunks import Work
from jobs.data.sources.file_stamp import info_of, stamp
from jobs.data.sources.formats import REQUIRED_COLUMNS, Reading
from jobs.data.sources.patterns import expand
from jobs.data.sources.user_code import read_code
from jobs.model_files.tokenizer import TokenizerFiles, check_tokenizer, read_tokenizer, without_end
from jobs.run.paths import prepared_root
from jobs.spec.data import Source, numbered
from jobs.spec.finetune import Spec
from jobs.storage import files as storage
from jobs.storage.listing import version_of

PREPARE_VERSION = 2  # increase it whenever the same input gives other rows
_SAY_BYTES = 2**30  # size of local files from which on reading them for the fingerprint is announced


@dataclass(frozen=True)
class SourceJob:
    """One source that is to be prepared."""

    where: str  # its name in the spec: data.train, data.train[1], data.eval, eval.general
    path: str  # its path in the spec
    work: Work
    sizes: tuple[int, ...]  # sizes of the files, in bytes
    fingerprint: str
    made_from: dict[str, Any]
    root: str  # its prepared directory
    causal: bool
    pack_to: int | None  # tokens of a row; None for one sample a row
    eval_fraction: float | None
    max_bad_fraction: float


def fingerprint(spec: Spec, model_dir: str) -> tuple[str, dict[str, Any]]:
    """Return the fingerprint of a job's data, and the values of which it is a digest.

    It depends on the content of the files, but not on their directory, the engine, the seed, the weights of sources or
    the model's weights.

    Raises:
        DataError: no file matches, or there is no tokenizer.
        StorageError: a file cannot be read.
    """
    return fingerprint_of_jobs(source_jobs(spec, read_tokenizer(model_dir, spec.model.chat_template)))


def fingerprint_of_jobs(jobs: dict[str, list[SourceJob]]) -> tuple[str, dict[str, Any]]:
    """Return the fingerprint of sources that were examined already, and the values behind it."""
    made_from = {role: [job.fingerprint for job in of_role] for role, of_role in jobs.items()}
    return _digest({"data": made_from}), made_from


def source_jobs(spec: Spec, tokenizer: TokenizerFiles, say: Say = lambda line: None) -> dict[str, list[SourceJob]]:
    """Examine the sources of each role: train, and eval and general if there are such. Raises as `fingerprint` does."""
    found: dict[str, list[SourceJob]] = {}
    for where, source in numbered(spec.sources):
        role = where.partition(".")[2].partition("[")[0]
        found.setdefault(role, []).append(_source_job(spec, source, where, tokenizer, say))
    return found


def check_formats(jobs: list[SourceJob], tokenizer: TokenizerFiles, model_dir: str) -> list[str]:
    """Load the tokenizer, reject it if a source's format cannot use it, and return warnings. Raises DataError.

    Its library imports torch, so `jobs` are only those that are not prepared yet.
    """
    formats = sorted({job.work.reading.format for job in jobs})
    for data_format in formats:
        check_tokenizer(tokenizer.load(), data_format, model_dir)
    return list(filter(None, (without_end(tokenizer.load(), data_format) for data_format in formats)))


def _source_job(spec: Spec, source: Source, where: str, tokenizer: TokenizerFiles, say: Say) -> SourceJob:
    data, reading = spec.data, Reading.of(spec, source)
    files = expand(source.path)
    stamps = tuple(stamp(file) for file in files)  # taken before reading, so that later changes are noticed
    sizes = tuple(storage.size(file) for file in files)
    if sum(sizes) > _SAY_BYTES and storage.is_local(source.path):
        say(f"reading {where} ({byte_size(sum(sizes))}) for its fingerprint")
    fraction = data.eval_fraction if where.startswith("data.train") else None
    code = read_code(reading.format) if reading.own else None
    made_from = {
        "prepare_version": PREPARE_VERSION,
        "files": [_file(path) for path in files],
        "format": reading.format,
        "code": None if code is None else code.digest,
        "columns": _columns(reading),
        "labels": None if data.labels is None else list(data.labels),
        "num_labels": spec.num_labels,
        "loss_on": data.loss_on,
        "eval_fraction": fraction,
        "seq_len": data.seq_len,
        "packed": spec.packed,
        "tokenizer": tokenizer.digests,
    }
    if tokenizer.writes_date and reading.format not in ("text", "classification"):
        made_from["date"] = DATE.isoformat()
    digest = _digest(made_from)
    return SourceJob(
        where=where,
        path=source.path,
        work=Work(files, stamps, reading, data.seq_len, data.loss_on, tokenizer, code),
        sizes=sizes,
        fingerprint=digest,
        made_from=made_from,
        root=prepared_root(spec.storage_path, digest),
        causal=spec.model.task == "causal-lm",
        pack_to=data.seq_len if spec.packed else None,
        eval_fraction=fraction,
        max_bad_fraction=data.max_bad_fraction,
    )


def _columns(reading: Reading) -> dict[str, str]:
    roles = [*REQUIRED_COLUMNS.get(reading.format, ()), *(["input"] if reading.format == "instruction" else [])]
    return {role: getattr(reading.columns, role) for role in roles}


def _digest(value: dict[str, Any]) -> str:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def _file(path: str) -> dict[str, Any]:
    if storage.is_local(path):
        return {"name": posixpath.basename(path), **_content(path)}
    info = info_of(path, fresh=False)
    if (version := version_of(info)) is not None:
        return {"name": path, "bytes": info.get("size"), "version": version}
    return {"name": path, **_content(path)}  # for stores without versions, such as plain HTTP


def _content(path: str) -> dict[str, Any]:
    with storage.open_read(path) as file:
        digest = hashlib.sha256()
        size = 0
        while block := file.read(2**20):
            digest.update(block)
            size += len(block)
    return {"bytes": size, "sha256": digest.hexdigest()}
