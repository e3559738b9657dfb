"""Storage that ends a process's work after so many changes: `cut:///path` is the local path, through fsspec."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem


class Cut(BaseException):
    """As a kill would: nothing catches it."""


class CutFileSystem(LocalFileSystem):  # type: ignore[misc]  # fsspec carries no types
    """A whole directory goes in one change, or in several where `rm` is cut off inside."""

    protocol = "cut"
    made = 0
    allowed: int | None = None
    refused = ""  # part of the names that nobody may change

    def _changes(self, path: str) -> None:
        if CutFileSystem.refused and CutFileSystem.refused in path:
            raise PermissionError(13, "Permission denied", path)
        if CutFileSystem.made == CutFileSystem.allowed:
            raise Cut
        CutFileSystem.made += 1

    def pipe_file(self, path: str, value: bytes, **options: Any) -> None:
        self._changes(path)
        pathlib.Path(self._strip_protocol(path)).parent.mkdir(parents=True, exist_ok=True)
        super().pipe_file(path, value, **options)

    def put_file(self, lpath: str, rpath: str, **options: Any) -> None:
        self._changes(rpath)
        pathlib.Path(self._strip_protocol(rpath)).parent.mkdir(parents=True, exist_ok=True)
        super().put_file(lpath, rpath, **options)

    def rm_file(self, path: str) -> None:
        self._changes(path)
        super().rm_file(path)

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """File by file, as on an object store."""
        root = pathlib.Path(self._strip_protocol(path))
        for file in sorted(root.rglob("*"), reverse=True):
            self._changes(str(file))
            file.rmdir() if file.is_dir() else file.unlink()
        if root.is_dir():
            root.rmdir()

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        plain = [one.removeprefix("cut://") for one in path] if isinstance(path, list) else path.removeprefix("cut://")
        return LocalFileSystem._strip_protocol(plain)


@contextmanager
def changes(allowed: int | None = None, refused: str = "") -> Iterator[None]:
    """So many changes pass in this context."""
    fsspec.register_implementation("cut", CutFileSystem, clobber=True)
    CutFileSystem.made, CutFileSystem.allowed, CutFileSystem.refused = 0, allowed, refused
    try:
        yield
    finally:
        CutFileSystem.allowed, CutFileSystem.refused = None, ""
