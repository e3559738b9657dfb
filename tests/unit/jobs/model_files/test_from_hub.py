"""A hub that fails now is asked again later, and a name that the hub does not have is a mistake."""

from __future__ import annotations

import errno
import types
from typing import Any

import pytest

from cluster.errors import DataError, StorageOutage
from jobs.model_files.directory import local_model_dir


class HubError(OSError):
    """As HfHubHTTPError of huggingface_hub."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the hub answered {status}")
        self.response = types.SimpleNamespace(status_code=status)


class ConnectError(Exception):
    """As that of httpx."""


class OfflineModeIsEnabled(ConnectionError):
    """As that of huggingface_hub."""


@pytest.mark.parametrize(
    ("cause", "kind"),
    [
        (HubError(503), StorageOutage),
        (HubError(429), StorageOutage),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), StorageOutage),
        (HubError(404), DataError),
        (ConnectError("Name or service not known"), DataError),
        (OfflineModeIsEnabled("HF_HUB_OFFLINE=1"), DataError),
    ],
)
def test_only_a_hub_that_fails_now_is_asked_again(
    cause: Exception, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine without internet, a mistyped directory looks like a hub that cannot be reached."""

    def download(name: str, **named: Any) -> str:
        raise FileNotFoundError("cannot find the files\nCheck your connection") from cause

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    advice = r"from the hub \(FileNotFoundError: cannot find the files\)\. Give a local directory, or a name that the"
    with pytest.raises(kind, match=advice):
        local_model_dir("org/name")
