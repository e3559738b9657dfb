"""Writes the shards of one split in sequence. Shards that an interrupted preparation has written are kept."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from cluster.errors import StorageError
from jobs.data.prepared import BLOCKS_PER_SHARD, INDEX_SCHEMA, ROW_SCHEMA, ROWS_PER_BLOCK, FileEntry
from jobs.storage import files as storage

ROWS_PER_SHARD = ROWS_PER_BLOCK * BLOCKS_PER_SHARD


@contextlib.contextmanager
def scratch_errors(folder: str) -> Iterator[None]:
    """Turn errors of local scratch files into StorageError, with their directory and advice."""
    try:
        yield
    except OSError as error:
        where = os.path.dirname(folder)
        raise StorageError(
            f"cannot write scratch files in {where}: {error.strerror or error}. Free space there, or set TMPDIR to a "
            "directory with more"
        ) from error


class ShardWriter:
    """Takes blocks of rows in order, and writes them as shards."""

    def __init__(self, root: str, split: str, scratch: str) -> None:
        self._folder = storage.join(root, split)
        self._scratch = scratch
        self.shards = _finished(self._folder)
        self.rows_kept = len(self.shards) * ROWS_PER_SHARD  # rows that are written already
        self._open: tuple[str, Any] | None = None
        self._blocks = 0

    def write_block(self, batch: Any) -> None:
        """Append a record batch with ROW_SCHEMA and ROWS_PER_BLOCK rows. Only the last batch may have fewer."""
        with scratch_errors(self._scratch):
            if self._open is None:
                local = os.path.join(self._scratch, f"shard-{len(self.shards):05d}.arrow")
                self._open = (local, pa.ipc.new_file(local, ROW_SCHEMA))
            self._open[1].write_batch(batch)
            self._blocks += 1
        if self._blocks == BLOCKS_PER_SHARD:
            self._finish_shard()

    def close(self, index: Any) -> FileEntry:
        """Finish the last shard, and write the index, which is a table with INDEX_SCHEMA."""
        self._finish_shard()
        local = os.path.join(self._scratch, "index.arrow")
        with scratch_errors(self._scratch), pa.OSFile(local, "wb") as sink, pa.ipc.new_file(sink, INDEX_SCHEMA) as file:
            file.write_table(index)
        return self._upload(local, "index.arrow")

    def _finish_shard(self) -> None:
        if self._open is None:
            return
        local, writer = self._open
        with scratch_errors(self._scratch):
            writer.close()
        entry = self._upload(local, os.path.basename(local))
        storage.write_bytes(_note(self._folder, len(self.shards)), entry.model_dump_json().encode())
        self.shards.append(entry)
        self._open, self._blocks = None, 0

    def _upload(self, local: str, name: str) -> FileEntry:
        with scratch_errors(self._scratch), open(local, "rb") as file:
            digest, size = hashlib.file_digest(file, "sha256").hexdigest(), os.path.getsize(local)
        storage.put_file(local, storage.join(self._folder, name))
        return FileEntry(name=name, bytes=size, sha256=digest)


def remove_notes(root: str, split: str, shards: int) -> None:
    """Remove the notes about single shards. Call this once the manifest, which covers all shards, is written."""
    for number in range(shards):
        storage.remove_file(_note(storage.join(root, split), number))


def _note(folder: str, number: int) -> str:
    """Return the path of a note that is written after a shard. A shard without its note counts as incomplete."""
    return storage.join(folder, f"shard-{number:05d}.json")


def _finished(folder: str) -> list[FileEntry]:
    """List the first shards, without gaps, that an earlier preparation has finished."""
    names = set(storage.list_names(folder))
    found: list[FileEntry] = []
    while os.path.basename(note := _note(folder, len(found))) in names:
        entry = FileEntry.model_validate_json(storage.read_bytes(note))
        shard = storage.join(folder, entry.name)
        if entry.name not in names or storage.size(shard) != entry.bytes:
            break
        found.append(entry)
    return found
