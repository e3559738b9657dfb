"""A model without the content of its weights, with which a driver can check the model and tokenise.

A driver may run on a head without a GPU and with a small disk. It fetches the small files and the headers of weights.
Each file of weights is then created sparse, with its full length, so that every check can read it.
"""

from __future__ import annotations

import os
import struct
from typing import Final

from cluster.errors import DataError, StorageError
from jobs.model_files.directory import WEIGHTS, fetched_once, local_model_dir
from jobs.storage import files as storage

_LONGEST_HEADER: Final = 100_000_000  # bytes; the limit that the safetensors format sets
_LARGEST_SMALL_FILE: Final = 64 << 20


def without_weights(path: str, cache_dir: str | None = None) -> str:
    """Return a local directory with everything of `model.path` except the content of its weights.

    Args:
        path, cache_dir: see `local_model_dir`. A local directory is returned unchanged.

    Raises:
        DataError, StorageError: the files cannot be fetched.
    """
    if storage.is_url(path) and not storage.is_local(path):
        return fetched_once(path, cache_dir, fetch_without_weights, ".files")
    local = storage.local_path(path)
    if os.path.isdir(local) or os.path.isabs(local):
        return local
    try:
        return fetched_once(f"hf://{path}", cache_dir, fetch_without_weights, ".files")
    except (DataError, StorageError):  # no network, or a mirror that only the hub's client knows; that has a cache
        return local_model_dir(path)


def fetch_without_weights(url: str, target: str) -> None:
    """Fill the directory `target` with small files and sparse weights. Raises StorageError."""
    with storage.reached("list", url) as (fs, inner):
        found = fs.find(inner, detail=True)
    root = inner.rstrip("/") + "/"
    for name, info in found.items():
        relative = str(name).removeprefix(root)
        local = os.path.join(target, relative)
        os.makedirs(os.path.dirname(local), exist_ok=True)
        with open(local, "wb") as file:
            file.write(_wanted(storage.join(url, relative), int(info.get("size") or 0)))
            if os.fstat(file.fileno()).st_size < int(info.get("size") or 0):
                file.truncate(int(info["size"]))


def _wanted(url: str, size: int) -> bytes:
    """Return the bytes of a file that a check may read: all of a small file, the header of weights."""
    if url.endswith(".safetensors") and size >= 8:
        (length,) = struct.unpack("<Q", storage.read_range(url, 0, 8))
        return storage.read_range(url, 0, 8 + min(length, _LONGEST_HEADER, size - 8))
    if url.endswith(WEIGHTS) or size > _LARGEST_SMALL_FILE:
        return b""
    return storage.read_bytes(url)
