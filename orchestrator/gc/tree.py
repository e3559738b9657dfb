"""Files under a storage path, read and removed for `fleetune gc` without following links.

The owners of runs can replace any file or directory by a link at any time. Therefore only the storage path itself may
contain links, and everything below it is opened name by name: see `jobs.storage.without_links`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from cluster.errors import StorageError
from jobs.storage import files as storage
from jobs.storage import without_links

_LARGEST: Final = 64 << 20  # most bytes of a file to read; specs, manifests and outcomes are far smaller


@dataclass(frozen=True)
class Tree:
    root: str  # path or URL

    def names(self, *names: str) -> list[str]:
        """List a directory, sorted; empty if it does not exist. Raises StorageError."""
        if not storage.is_local(self.root):
            return storage.list_names(self._url(names))
        with self._explained("list", names):
            return without_links.names_in(self._base, names)

    def is_link(self, *names: str) -> bool:
        """Whether the last name is a link. Raises StorageError."""
        if not storage.is_local(self.root):
            return False
        with self._explained("look at", names):
            return without_links.is_link(self._base, names)

    def read(self, *names: str) -> bytes:
        """Read a small file. Raises StorageError."""
        if not storage.is_local(self.root):
            return storage.read_bytes(self._url(names))
        with self._explained("read", names):
            content = without_links.read(self._base, names, 0, _LARGEST + 1)
        if len(content) > _LARGEST:
            raise StorageError(f"cannot read {self._url(names)}: it has more than {_LARGEST:,} bytes")
        return content

    def write(self, content: bytes, *names: str) -> None:
        """Write a file atomically, in an existing directory. Raises StorageError."""
        if not storage.is_local(self.root):
            storage.write_bytes(self._url(names), content)
            return
        with self._explained("write", names):
            without_links.write(self._base, names, content)

    def remove(self, *names: str) -> None:
        """Remove a file, a link itself, or a directory with its content. A missing one is no error.

        Raises StorageError.
        """
        if storage.is_local(self.root):
            with self._explained("remove", names):
                without_links.remove(self._base, names)
        elif storage.is_dir(self._url(names)):
            storage.remove_dir(self._url(names))
        else:
            storage.remove_file(self._url(names))

    @property
    def _base(self) -> str:
        return storage.local_path(self.root)

    def _url(self, names: tuple[str, ...]) -> str:
        return storage.join(self.root, *names)

    @contextlib.contextmanager
    def _explained(self, what: str, names: tuple[str, ...]) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            why = error.strerror or str(error)
            raise StorageError(f"cannot {what} {self._url(names)}: {why}. Links are not followed there") from error
