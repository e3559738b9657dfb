"""Directories as sources: all files under one, or those of a dataset that Hugging Face `datasets` saved there.

Also reads Parquet and Arrow tables in small batches. Light to import.
"""

from __future__ import annotations

import collections
import json
import os
import posixpath
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, Final, cast

from cluster.errors import DataError
from jobs.data.sources.bad_records import Reason
from jobs.storage import files as storage

PARQUET_ROWS = 256  # converted to Python values at a time; batches in a file may be larger
_STATE, _INFO, _SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"
# JSON files that describe data and are no data; `datasets` ignores the same names.
_DESCRIPTIONS = (_INFO, _SPLITS, "dataset_infos.json", "config.json")
HIDDEN: Final = (".", "_")  # the names of hidden files and directories begin with one of these
_NAMED = 5  # names in a message, of possibly many


def files_in(directory: str, endings: tuple[str, ...]) -> tuple[str, ...]:
    """List the files that a directory (an absolute path or URL) means, sorted unless it is a saved dataset.

    Raises:
        DataError: it has no file with one of `endings`, or a saved dataset that must be named or saved differently.
        StorageError: it cannot be read.
    """
    names = storage.list_names(directory)
    if _STATE in names and _INFO in names:
        return _saved_files(directory, names)
    if _SPLITS in names:
        raise _holds_datasets(directory, _splits(directory))
    found = sorted(_walk(directory))
    inside = [file for file in found if not _hidden(file)]
    files, folders = set(inside), dict.fromkeys(map(posixpath.dirname, inside))
    saved = [one for one in folders if {posixpath.join(one, name) for name in (_STATE, _INFO)} <= files]
    if saved:
        raise _holds_datasets(directory, saved)
    every = [file for file in inside if _is_data(file, endings)]
    # If there is other data, a text file is usually a note or a license.
    data = [file for file in every if not file.lower().endswith((".txt", ".txt.gz"))] or every
    if not data:
        raise DataError(f"{directory} holds no data: it has {_kinds(found)}, but needs one of {', '.join(endings)}")
    return tuple(storage.join(directory, file) for file in data)


def _saved_files(directory: str, names: Sequence[str]) -> tuple[str, ...]:
    path = storage.join(directory, _STATE)
    state = _json_object(path)
    if state.get("_indices_files") or state.get("_indices_data_files"):
        raise DataError(
            f"{directory} holds a dataset with an index of its rows, which Fleetune does not read. Write the rows out "
            "with: datasets.load_from_disk(old).flatten_indices().save_to_disk(new)"
        )
    try:
        files = [str(entry["filename"]) for entry in state["_data_files"]]
    except (KeyError, TypeError) as error:
        raise DataError(f"{path} names no data files: save the dataset again with save_to_disk") from error
    if not files:
        raise DataError(f"{directory} holds a saved dataset without rows: name another, or save it again")
    if missing := [file for file in files if file not in names]:
        what = ", ".join(missing[:_NAMED])
        raise DataError(f"{path} names {what}, which is not there: copy the whole directory, or save it again")
    return tuple(storage.join(directory, file) for file in files)


def _splits(directory: str) -> list[str]:
    splits = _json_object(storage.join(directory, _SPLITS)).get("splits")
    return [str(split) for split in splits] if isinstance(splits, list) else []


def _holds_datasets(directory: str, folders: list[str]) -> DataError:
    names = ", ".join(storage.join(directory, folder) for folder in folders[:_NAMED]) or "none"
    return DataError(f"{directory} holds saved datasets in sub-directories: name one, of {names}")


def _json_object(path: str) -> dict[str, Any]:
    try:
        value = json.loads(storage.read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}. Copy or save the dataset again.") from error
    return value if isinstance(value, dict) else {}


def _walk(directory: str) -> Iterator[str]:
    """Yield the paths of all files under a directory, relative to it."""
    if storage.is_local(directory):
        yield from _local_walk(storage.local_path(directory))
        return
    fs, inner = storage.filesystem(directory)
    start = inner.rstrip("/") + "/"
    for name, info in fs.find(inner, detail=True).items():
        if info["type"] == "file" and name.startswith(start):
            yield name.removeprefix(start)


def _local_walk(top: str) -> Iterator[str]:
    seen = set()  # links to directories are followed, but not in circles
    for folder, folders, files in os.walk(top, followlinks=True, onerror=_raise):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()  # so that of two ways to a directory, the same one is always taken
        for file in files:
            path = os.path.join(folder, file)
            if os.path.isfile(path) or os.path.islink(path):  # a broken link must cause an error, not be left out
                yield os.path.relpath(path, top)


def _raise(error: OSError) -> None:
    raise error


def _hidden(file: str) -> bool:
    return any(part.startswith(HIDDEN) for part in file.split("/"))


def _is_data(file: str, endings: tuple[str, ...]) -> bool:
    return file.lower().endswith(endings) and posixpath.basename(file) not in _DESCRIPTIONS


def _kinds(files: Sequence[str]) -> str:
    """Describe the files of a directory that are not data."""
    kinds = collections.Counter(
        "hidden" if _hidden(file) else posixpath.splitext(file)[1] or "without ending" for file in files
    )
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(_NAMED)) or "no files"


def parquet_batches(raw: BinaryIO, size: int) -> Iterator[tuple[Any, int]]:
    """Yield batches of at most PARQUET_ROWS rows, each with the bytes of the file read up to its end."""
    import pyarrow.parquet as pq

    parquet, done = pq.ParquetFile(raw), 0
    for batch in parquet.iter_batches(batch_size=PARQUET_ROWS):
        done += batch.num_rows
        yield batch, size * done // parquet.metadata.num_rows


def arrow_batches(raw: BinaryIO, size: int) -> Iterator[tuple[Any, int]]:
    """Yield batches of an Arrow file or stream, as `parquet_batches` does."""
    import pyarrow as pa

    magic = raw.read(6)
    raw.seek(0)
    if magic == b"ARROW1":
        reader = pa.ipc.open_file(raw)
        count = reader.num_record_batches
        for number in range(count):
            yield from _slices(reader.get_batch(number), size * number // count, size * (number + 1) // count)
        return
    begin = 0
    for batch in pa.ipc.open_stream(raw):
        end = raw.tell()
        yield from _slices(batch, begin, end)
        begin = end


def _slices(batch: Any, begin: int, end: int) -> Iterator[tuple[Any, int]]:
    for first in range(0, batch.num_rows, PARQUET_ROWS):
        part = batch.slice(first, PARQUET_ROWS)
        yield part, begin + (end - begin) * (first + part.num_rows) // batch.num_rows


def values_of(batch: Any) -> list[dict[str, Any]]:
    """Convert rows to Python values. A value that cannot be converted, such as text that is not UTF-8, is a Reason."""
    try:
        return cast(list[dict[str, Any]], batch.to_pylist())
    except Exception as error:  # an unknown time zone is a KeyError
        if batch.num_rows > 1:
            return [value for number in range(batch.num_rows) for value in values_of(batch.slice(number, 1))]
        if batch.num_columns > 1:
            columns = (values_of(batch.select([name])) for name in batch.schema.names)
            return [{name: value for (row,) in columns for name, value in row.items()}]
        return [{batch.schema.names[0]: Reason(f"no Python value: {error}", "no Python value")}]
