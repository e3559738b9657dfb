"""What is written past the page cache is what was given, on any file system."""

from __future__ import annotations

import errno
import os
import pathlib
import random

import pytest

from jobs.storage import direct_io as directfile
from jobs.storage import files as storage
from jobs.storage.direct_io import DirectFile

BLOCK = directfile._BLOCK_BYTES


@pytest.mark.parametrize("sizes", [[], [1], [BLOCK], [BLOCK - 1, 2], [3 * BLOCK + 17], [5, BLOCK, 7, BLOCK * 2, 1]])
def test_pieces_of_any_size_come_out_in_order(tmp_path: pathlib.Path, sizes: list[int]) -> None:
    pieces = [random.Random(size).randbytes(size) for size in sizes]
    with storage.open_write(str(tmp_path / "a")) as file:
        for piece in pieces:
            assert file.write(memoryview(piece)) == len(piece)
    assert (tmp_path / "a").read_bytes() == b"".join(pieces)


def test_a_file_system_that_knows_no_such_writes_gets_ordinary_ones(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write
    refused = 0

    def picky(descriptor: int, data: bytes) -> int:
        nonlocal refused
        if refused == 0:
            refused += 1
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(descriptor, data)

    content = random.Random(1).randbytes(2 * BLOCK + 5)
    descriptor = os.open(tmp_path / "a", os.O_CREAT | os.O_WRONLY)
    monkeypatch.setattr(directfile, "_set_direct", lambda descriptor, on: True)
    monkeypatch.setattr(os, "write", picky)
    file = DirectFile(descriptor)
    file.write(content)
    file.finish()
    os.close(descriptor)
    assert refused == 1 and (tmp_path / "a").read_bytes() == content


def test_a_full_disk_is_told(tmp_path: pathlib.Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    file = DirectFile(full)
    with pytest.raises(OSError, match="No space left"):
        file.write(bytes(BLOCK))
    os.close(full)
