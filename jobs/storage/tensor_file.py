"""A file of tensors in the safetensors format, written as a stream and read in verified ranges.

Neither writing nor reading holds a whole file in memory. Checksums cover chunks of `CHUNK_BYTES`, so that a reader can
verify the part of a tensor that it needs. They are CRC-32, which finds every error burst of up to 32 bits.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from cluster.errors import StorageError, StorageOutage
from jobs.frozen import Frozen
from jobs.storage import files as storage
from jobs.storage.outages import is_unrelated_to_file
from jobs.storage.versioned import Damaged as Damaged

CHUNK_BYTES = 4 * 2**20
_CHUNKS_PER_READ = 16
_READERS = 4

Bytes = npt.NDArray[np.uint8]


class ShardFile(Frozen):
    """Facts about a written file, with which it can be verified."""

    name: str
    bytes: int
    checksums: tuple[int, ...] = Field(description="CRC-32 of each CHUNK_BYTES of the file.")
    offsets: dict[str, int] = Field(description="Position of each tensor in the file, in bytes.")


@dataclass(frozen=True)
class Tensor:
    """A flat tensor to be written; `data` holds its bytes."""

    name: str
    dtype: str  # in the spelling of safetensors: F32, I64 ...
    shape: tuple[int, ...]
    data: Bytes


def as_bytes(array: npt.NDArray[Any]) -> Bytes:
    """View a contiguous array as bytes, without a copy."""
    return array.reshape(-1).view(np.uint8)


def write_shard(folder: str, name: str, tensors: list[Tensor]) -> ShardFile:
    """Write tensors as `folder/name`. The file appears whole or not at all.

    Raises:
        StorageError: the storage rejected the write or is full.
    """
    header, offsets = _header(tensors)
    checksums: list[int] = []
    size = 0
    with storage.open_write(storage.join(folder, name)) as file:
        for chunk in _chunks([np.frombuffer(header, dtype=np.uint8), *(tensor.data for tensor in tensors)]):
            crc = 0
            for piece in chunk:
                crc = zlib.crc32(piece, crc)
                file.write(piece)
                size += len(piece)
            checksums.append(crc)
    return ShardFile(name=name, bytes=size, checksums=tuple(checksums), offsets=offsets)


def _header(tensors: list[Tensor]) -> tuple[bytes, dict[str, int]]:
    """Make the header (a length, then JSON, padded to a multiple of 8 bytes), and find each tensor's position."""
    entries: dict[str, Any] = {"__metadata__": {"format": "fleetune-checkpoint"}}
    begin = 0
    for tensor in tensors:
        end = begin + len(tensor.data)
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    places = {name: len(head) + entry["data_offsets"][0] for name, entry in entries.items() if name != "__metadata__"}
    return head, places


def _chunks(parts: Iterable[Bytes]) -> Iterator[list[memoryview]]:
    """Cut a sequence of byte arrays into chunks of CHUNK_BYTES, each a list of views; the last may be shorter."""
    chunk: list[memoryview] = []
    room = CHUNK_BYTES
    for part in parts:
        view = memoryview(part.data)
        while len(view):
            chunk.append(view[:room])
            room -= len(chunk[-1])
            view = view[len(chunk[-1]) :]
            if room == 0:
                yield chunk
                chunk, room = [], CHUNK_BYTES
    if chunk:
        yield chunk


@dataclass(frozen=True)
class Want:
    """A range of bytes to read, begin .. begin + len(into) - 1, and the memory to read it into."""

    begin: int
    into: Bytes


def read_ranges(folder: str, file: ShardFile, wants: list[Want]) -> None:
    """Read ranges of a written file into the caller's memory. The checksum of every chunk read is verified.

    Raises:
        Damaged: the file is missing, shorter, or differs from what was written.
        StorageOutage: the storage does not answer now.
    """
    path = storage.join(folder, file.name)
    wants = sorted((want for want in wants if len(want.into)), key=lambda want: want.begin)
    runs = list(_runs(wants))
    with ThreadPoolExecutor(_READERS) as pool:
        list(pool.map(lambda run: _read_run(path, file, wants, *run), runs))


def _runs(wants: list[Want]) -> Iterator[tuple[int, int]]:
    """Yield (first, last exclusive) numbers of the chunks to read at once. No chunk is read twice."""
    done = 0
    first = last = 0
    for want in wants:
        low = max(want.begin // CHUNK_BYTES, done)
        high = (want.begin + len(want.into) - 1) // CHUNK_BYTES + 1
        for chunk in range(low, high):
            if chunk != last or last - first == _CHUNKS_PER_READ:
                if last > first:
                    yield first, last
                first = chunk
            last = chunk + 1
        done = max(done, high)
    if last > first:
        yield first, last


def _read_run(path: str, file: ShardFile, wants: list[Want], first: int, last: int) -> None:
    """Read and verify the chunks first .. last - 1, and copy the wanted ranges. Raises Damaged or StorageOutage."""
    begin, end = first * CHUNK_BYTES, min(last * CHUNK_BYTES, file.bytes)
    try:
        content = storage.read_range(path, begin, end)
    except StorageOutage:  # an outage does not mean that the file is damaged
        raise
    except StorageError as error:
        if is_unrelated_to_file(error):
            raise
        raise Damaged(str(error)) from error
    if len(content) != end - begin:
        raise Damaged(f"{path} is shorter than the {file.bytes:,} bytes that were written")
    view = memoryview(content)
    for number in range(first, last):
        chunk = view[(number - first) * CHUNK_BYTES : (number + 1 - first) * CHUNK_BYTES]
        if zlib.crc32(chunk) != file.checksums[number]:
            raise Damaged(
                f"{path} has other bytes than were written, within {CHUNK_BYTES:,} bytes from {number * CHUNK_BYTES:,}"
            )
    array = np.frombuffer(content, dtype=np.uint8)
    for want in wants:
        low, high = max(want.begin, begin), min(want.begin + len(want.into), end)
        if low < high:
            want.into[low - want.begin : high - want.begin] = array[low - begin : high - begin]
