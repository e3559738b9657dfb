"""A store that fails while a source is read has not damaged the file."""

from __future__ import annotations

import errno
import io
from typing import Any

import fsspec
import pytest

from cluster.errors import StorageOutage
from tests.unit.jobs.data.sources.test_records import CONTENTS, values

pytestmark = pytest.mark.usefixtures("own_protocols")


class EndpointConnectionError(Exception):
    """As that of botocore, which is no OSError."""


class Away(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """A store that answers the first read of a file, and no more."""

    error: Exception

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": path, "size": len(CONTENTS[path.removeprefix("dropping://")]), "type": "file"}

    def _open(self, path: str, *_: Any, **__: Any) -> Any:
        class Once(io.BytesIO):
            was_read = False

            def read(self, size: int | None = -1) -> bytes:
                if self.was_read:
                    raise Away.error
                self.was_read = True
                return super().read(size)

        return Once(CONTENTS[path.removeprefix("dropping://")])


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("error", [ConnectionResetError(errno.ECONNRESET, "reset"), EndpointConnectionError("no way")])
def test_an_outage_is_no_damage_of_any_kind_of_file(name: str, error: Exception) -> None:
    fsspec.register_implementation("dropping", Away, clobber=True)
    Away.error = error
    with pytest.raises(StorageOutage, match=rf"cannot read dropping://{name} after line \d+, at byte") as caught:
        values(f"dropping://{name}")
    assert "write the file again" not in str(caught.value)
