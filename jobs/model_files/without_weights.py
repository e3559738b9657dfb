"""A model without the content of its weights: enough for a driver to check it and to tokenise with it.

A driver may run on a head without a GPU and with a small disk. It reads the small files and the headers of the weights.
Each file of weights is then laid down in its full length but without its blocks, so that every check can look at it.
"""

from __future__ import annotations

import os
import struct
from typing import Final

from jobs.errors import DataError, StorageError
from jobs.model_files.directory import fetched_once, local_model_dir
from jobs.storage import files as storage

_WEIGHTS: Final = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".gguf", ".h5", ".msgpack", ".onnx")
_LONGEST_HEADER: Final = 100_000_000  # of safetensors, by its own definition
_LARGEST_SMALL_FILE: Final = 64 << 20


def without_weights(path: str, cache_dir: str | None = None) -> str:
    """A directory on this machine with everything of `model.path` but the content of its weights.

    Args:
        path, cache_dir: see `local_model_dir`. A directory of this machine is returned as it is.

    Raises:
        DataError, StorageError: it cannot be fetched.
    """
    if storage.is_url(path) and not storage.is_local(path):
        return fetched_once(path, cache_dir, fetch_without_weights, ".files")
    local = storage.local_path(path)
    if os.path.isdir(local) or os.path.isabs(local):
        return local
    try:
        return fetched_once(f"hf://{path}", cache_dir, fetch_without_weights, ".files")
    except (DataError, StorageError):  # no network, or a hub that only its own client knows: that one has a cache
        return local_model_dir(path)


def fetch_without_weights(url: str, target: str) -> None:
    """Fill the directory `target`. Raises StorageError."""
    fs, inner = storage.filesystem(url)
    root = inner.rstrip("/") + "/"
    for name, info in fs.find(inner, detail=True).items():
        relative = str(name).removeprefix(root)
        local = os.path.join(target, relative)
        os.makedirs(os.path.dirname(local), exist_ok=True)
        with open(local, "wb") as file:
            file.write(_wanted(storage.join(url, relative), int(info.get("size") or 0)))
            if os.fstat(file.fileno()).st_size < int(info.get("size") or 0):
                file.truncate(int(info["size"]))


def _wanted(url: str, size: int) -> bytes:
    """The bytes of a file, or of its beginning, that somebody may look at."""
    if url.endswith(".safetensors") and size >= 8:
        (length,) = struct.unpack("<Q", storage.read_range(url, 0, 8))
        return storage.read_range(url, 0, 8 + min(length, _LONGEST_HEADER, size - 8))
    if url.endswith(_WEIGHTS) or size > _LARGEST_SMALL_FILE:
        return b""
    return storage.read_bytes(url)
