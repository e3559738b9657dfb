"""A storage that does not answer now is no damage and no wrong input: the same may succeed later."""

from __future__ import annotations

import errno
import pathlib
import types
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from cluster.errors import StorageError, StorageOutage
from jobs.data.sources.patterns import expand
from jobs.run.checkpoints import read_commit
from jobs.run.paths import JobPaths
from jobs.run.record import outcome_of_error
from jobs.storage import files as storage
from jobs.storage.outages import is_outage
from jobs.storage.tensor_file import Damaged, ShardFile, Want, read_ranges

pytestmark = pytest.mark.usefixtures("own_protocols")


class EndpointConnectionError(Exception):
    """As that of botocore, which is no OSError."""


class HttpError(OSError):
    """As those of httpx, requests and huggingface_hub, which have no errno."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the server answered {status}")
        self.response = types.SimpleNamespace(status_code=status)


class RemoteProtocolError(Exception):
    """As httpx raises it if a server closes a connection without an answer."""


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


class Silent(MemoryFileSystem):  # type: ignore[misc]  # fsspec carries no types
    protocol = "dropping"
    error: Exception = EndpointConnectionError("Could not connect to the endpoint URL")

    def _open(self, path: str, mode: str = "rb", *given: Any, **named: Any) -> Any:
        raise self.error

    def cat_file(self, path: str, *given: Any, **named: Any) -> Any:
        raise self.error

    def info(self, path: str, **named: Any) -> Any:
        raise self.error


@pytest.fixture
def silent() -> str:
    fsspec.register_implementation("dropping", Silent, clobber=True)
    return "dropping://bucket"


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), True),
        (ConnectionRefusedError("without a number"), True),
        (TimeoutError(), True),
        (EndpointConnectionError("Could not connect"), True),
        (OSError(errno.EBUSY, "SlowDown"), True),
        (OSError(errno.ESTALE, "Stale file handle"), True),
        (OSError(errno.EIO, "We encountered an internal error"), True),
        (OSError(errno.EREMOTEIO, "We encountered an internal error"), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), False),
        (PermissionError(errno.EACCES, "Access Denied"), False),
        (ValueError("bad name"), False),
        (HttpError(408), True),
        (HttpError(425), True),
        (HttpError(429), True),
        (HttpError(500), True),
        (HttpError(503), True),
        (HttpError(401), False),
        (HttpError(404), False),
        (RemoteProtocolError("Server disconnected without sending a response"), True),
        (caused(FileNotFoundError("not in the cache"), HttpError(503)), True),
        (caused(FileNotFoundError("not in the cache"), HttpError(404)), False),
        (caused(OSError("ConnectionClosedError"), EndpointConnectionError("closed")), True),
        (caused(FileNotFoundError(errno.ENOENT, "No such file"), EndpointConnectionError("closed")), False),
    ],
)
def test_what_passes_is_told_from_what_comes_again(error: Exception, passes: bool) -> None:
    assert is_outage(error, local=False) is passes


@pytest.mark.parametrize(
    ("cause", "is_reader"),
    [
        (PermissionError(errno.EACCES, "Access Denied"), True),
        (PermissionError("Forbidden"), True),
        (OSError(errno.EMFILE, "Too many open files"), True),
        (MemoryError(), True),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), False),
        (OSError(errno.EIO, "Input/output error"), False),
        (ValueError("other content"), False),
    ],
)
def test_a_read_that_is_not_allowed_says_nothing_about_the_file(
    cause: Exception, is_reader: bool, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint that may not be read is not passed over as damaged."""

    def refused(path: str) -> bytes:
        raise StorageError(f"cannot read {path}") from cause

    monkeypatch.setattr(storage, "read_bytes", refused)
    with pytest.raises(StorageError) as raised:
        read_commit(JobPaths(str(tmp_path)), 10)
    assert isinstance(raised.value, Damaged) is not is_reader


def test_a_disk_that_cannot_be_read_is_no_outage() -> None:
    assert not is_outage(OSError(errno.EIO, "Input/output error"), local=True)


def test_a_mount_that_is_away_does_not_make_a_file_absent(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    assert storage.exists(f"{tmp_path}/file") and not storage.exists(f"{tmp_path}/file/below")
    assert not storage.exists(f"{tmp_path}/none") and not storage.exists(f"{tmp_path}/{'n' * 300}")

    def away(path: Any, **named: Any) -> Any:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr("os.stat", away)
    with pytest.raises(StorageOutage, match="Stale file handle"):
        storage.exists(f"{tmp_path}/file")


@pytest.mark.parametrize("error", [EndpointConnectionError("closed"), caused(FileNotFoundError("?"), HttpError(503))])
def test_an_outage_does_not_make_a_file_absent(error: Exception, silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose checkpoints were absent would begin again at step 0."""
    monkeypatch.setattr(Silent, "error", error)
    for look in (storage.exists, storage.is_dir, lambda path: storage.read_versioned(path, 1), expand):
        with pytest.raises(StorageOutage, match=r"cannot look (at|for) dropping://bucket/x") as caught:
            look(f"{silent}/x")
        assert look is expand or "FileNotFoundError" not in str(caught.value), "the cause says more"


def test_an_outage_does_not_make_a_checkpoint_damaged(silent: str) -> None:
    """A damaged checkpoint is passed over, and the run goes on from an earlier one, or from its start."""
    file = ShardFile(name="a", bytes=4, checksums=(0,), offsets={"weight:p": 0})
    with pytest.raises(StorageOutage) as caught:
        read_ranges(silent, file, [Want(0, np.zeros(4, np.uint8))])
    assert not isinstance(caught.value, Damaged)
    with pytest.raises(StorageOutage, match="Could not connect"):
        read_commit(JobPaths(silent), 10)


def test_an_outage_ends_an_attempt_so_that_a_queue_tries_it_again(silent: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(StorageOutage) as caught:
        storage.read_bytes(f"{silent}/x")
    outcome = outcome_of_error(caught.value)
    assert (outcome.exit_code, outcome.bad_input, outcome.faulty_nodes) == (75, False, ())
    assert outcome_of_error(StorageError("no such file")).exit_code == 2
