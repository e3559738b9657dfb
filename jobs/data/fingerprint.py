"""What prepared data is made from, as one value: equal fingerprints, equal shards."""

from __future__ import annotations

import hashlib
import json
import posixpath
from typing import Any

from jobs import storage
from jobs.data.records import expand
from jobs.data.tokenizer import TokenizerFiles, read_tokenizer
from jobs.errors import DataError
from jobs.spec import Spec

PREPARE_VERSION = 1  # raise it whenever the same input gives other rows


def fingerprint(spec: Spec, model_dir: str) -> tuple[str, dict[str, Any]]:
    """The fingerprint and what it was taken over.

    It depends on the content of the files, not on the directory they lie in; not on the engine, the seed or the model's
    weights.

    Raises:
        DataError: no file matches, or the tokenizer is missing.
        StorageError: a file cannot be read.
    """
    return fingerprint_of(spec, read_tokenizer(model_dir))


def fingerprint_of(spec: Spec, tokenizer: TokenizerFiles) -> tuple[str, dict[str, Any]]:
    """The same for a tokenizer that was read already."""
    data = spec.data
    made_from = {
        "prepare_version": PREPARE_VERSION,
        "train": [_file(path) for path in expand(data.train)],
        "eval": None if data.eval is None else [_file(path) for path in expand(data.eval)],
        "eval_fraction": data.eval_fraction,
        "format": data.format,
        "columns": data.columns.model_dump(),
        "labels": None if data.labels is None else list(data.labels),
        "num_labels": spec.num_labels,
        "seq_len": data.seq_len,
        "packed": spec.packed,
        "tokenizer": tokenizer.digests,
    }
    canonical = json.dumps(made_from, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:32], made_from


def _file(path: str) -> dict[str, Any]:
    if storage.is_local(path):
        return {"name": posixpath.basename(path), **_content(path)}
    fs, inner = storage.filesystem(path)
    try:
        info = fs.info(inner)
    except Exception as error:  # object stores raise whatever their client raises
        raise DataError(f"cannot look at {path}: {type(error).__name__}: {error}") from error
    for key in ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated"):
        if info.get(key):
            return {"name": path, "bytes": info.get("size"), "version": str(info[key])}
    return {"name": path, **_content(path)}  # a store without versions, as plain HTTP


def _content(path: str) -> dict[str, Any]:
    with storage.open_read(path) as file:
        digest = hashlib.sha256()
        size = 0
        while block := file.read(2**20):
            digest.update(block)
            size += len(block)
    return {"bytes": size, "sha256": digest.hexdigest()}
