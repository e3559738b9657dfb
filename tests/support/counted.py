"""Storage that counts the bytes that are read from it, and its lists: `counted:///path`, in this process's memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class CountedFileSystem(MemoryFileSystem):  # type: ignore[misc]  # fsspec carries no types
    protocol = "counted"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    read = 0
    listed = 0  # calls

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return MemoryFileSystem._strip_protocol(path.removeprefix("counted://"))

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        CountedFileSystem.listed += 1
        return super().ls(path, detail, **options)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> Any:
        content = super().cat_file(path, start, end, **options)
        CountedFileSystem.read += len(content)
        return content

    def _open(self, path: str, mode: str = "rb", *arguments: Any, **options: Any) -> Any:
        """Who opens a file for reading reads all of it."""
        CountedFileSystem.read += self.size(path) if mode == "rb" else 0
        return super()._open(path, mode, *arguments, **options)


fsspec.register_implementation("counted", CountedFileSystem, clobber=True)


@contextlib.contextmanager
def counted_bytes() -> Iterator[Callable[[], int]]:
    """Gives the bytes read since its beginning; the store is empty at its end."""
    before = CountedFileSystem.read
    try:
        yield lambda: CountedFileSystem.read - before
    finally:
        CountedFileSystem.store.clear()
