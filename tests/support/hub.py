"""The file system of the Hugging Face hub, in memory: it reports blob ids and no times, as the hub does."""

from __future__ import annotations

import hashlib
from typing import Any, ClassVar

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry


class HubFileSystem(MemoryFileSystem):  # type: ignore[misc]  # fsspec carries no types
    protocol = "hf"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return MemoryFileSystem._strip_protocol(path.removeprefix("hf://"))

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        entries = super().ls(path, detail=True, **options)
        return [self._known(entry) for entry in entries] if detail else [entry["name"] for entry in entries]

    def info(self, path: str, **options: Any) -> Any:
        return self._known(super().info(path, **options))

    def unstrip_protocol(self, name: str) -> str:
        return f"hf://{name.lstrip('/')}"

    def _known(self, entry: dict[str, Any]) -> dict[str, Any]:
        facts: dict[str, Any] = {name: entry[name] for name in ("name", "size", "type")} | {"last_commit": None}
        if entry["type"] == "file":
            content = self.store[entry["name"]].getvalue()
            facts |= {"blob_id": hashlib.sha1(content).hexdigest(), "lfs": None, "xet_hash": None}
        return facts


def empty_hub(monkeypatch: pytest.MonkeyPatch) -> HubFileSystem:
    """Let hf:// mean an empty hub in memory until the end of the test."""
    monkeypatch.setitem(_registry, "hf", HubFileSystem)
    monkeypatch.setattr(HubFileSystem, "store", {})
    return HubFileSystem()
