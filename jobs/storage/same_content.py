"""Compares a file on storage with a local one, by its checksum if the storage reports one."""

from __future__ import annotations

import base64
import filecmp
import hashlib
import math
import re
from collections.abc import Mapping
from typing import Any, Final

from jobs.storage import files as storage

READ_AND_COMPARED: Final = 2**20  # bytes up to which a file without a checksum is downloaded for the comparison

_MIB = 2**20
# Sizes of parts that clients of S3 use for uploads.
_PART_SIZES = tuple(count * _MIB for count in (5, 8, 10, 15, 16, 25, 32, 50, 64, 100, 128, 256, 512, 1024))
_ETAG = re.compile(r'^"?([0-9a-f]{32})(?:-([0-9]+))?"?$')


def same(local: str, size: int, path: str, info: Mapping[str, Any]) -> bool:
    """Whether the file at `path`, of which the storage reports `info`, equals the local one; False if unknown.

    Raises:
        OSError: the local file cannot be read.
        StorageError: the file on storage cannot be read.
    """
    if info.get("size") != size:
        return False
    if storage.is_local(path):
        return filecmp.cmp(local, storage.local_path(path), shallow=False)
    if isinstance(of_content := info.get("md5Hash"), str):  # reported by Google Cloud Storage
        return bool(of_content == base64.b64encode(_md5(local).digest()).decode())
    if match := _ETAG.match(str(info.get("ETag") or "")):  # reported by S3
        return _has_etag(local, size, match[1], int(match[2] or 0))
    if size <= READ_AND_COMPARED:
        with open(local, "rb") as file:
            return file.read() == storage.read_bytes(path)
    return False


def _has_etag(local: str, size: int, etag: str, parts: int) -> bool:
    """Compare with an ETag: for unencrypted objects, the MD5 of the object, or of the MD5s of its uploaded parts."""
    if not parts:
        return bool(_md5(local).hexdigest() == etag)
    return any(
        _md5_of_parts(local, part_size) == etag for part_size in _PART_SIZES if math.ceil(size / part_size) == parts
    )


def _md5(local: str) -> Any:
    with open(local, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))


def _md5_of_parts(local: str, part_size: int) -> str:
    whole = hashlib.md5(usedforsecurity=False)
    with open(local, "rb") as file:
        while part := file.read(part_size):
            whole.update(hashlib.md5(part, usedforsecurity=False).digest())
    return whole.hexdigest()
