"""Encodes the values of the fake cluster as JSON, one line for each value."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from cluster.backend import Launch, Phase, Submission
from cluster.capacity.inventory import Growth, Inventory, Node, NodeType
from cluster.errors import BackendUnreachable, Fenced, FleetuneError, LaunchRefused
from cluster.testing.history import Run
from cluster.testing.script import Script

_VALUES: Mapping[str, type[Any]] = {
    one.__name__: one for one in (Launch, Submission, Inventory, Growth, NodeType, Node, Run, Script)
}
_ERRORS: Mapping[str, type[Exception]] = {
    one.__name__: one for one in (BackendUnreachable, Fenced, LaunchRefused, KeyError, ValueError, TypeError)
}


def dump(value: Any) -> bytes:
    return json.dumps(_plain(value)).encode() + b"\n"


def load(line: bytes) -> Any:
    """Decode a line that `dump` made. Sequences become tuples."""
    return _whole(json.loads(line))


def dump_error(error: Exception) -> bytes:
    return dump({"error": type(error).__name__, "message": str(error)})


def error_of(answer: Mapping[str, str]) -> Exception:
    """Make the error that the other process has raised; FleetuneError if its class is not known here."""
    return _ERRORS.get(answer["error"], FleetuneError)(answer["message"])


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        fields = {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"is": type(value).__name__, "of": fields}
    if isinstance(value, Phase):
        return {"is": "Phase", "of": str(value)}
    if isinstance(value, bytes):
        return {"is": "bytes", "of": value.hex()}
    if isinstance(value, Mapping):
        return {"is": "map", "of": {name: _plain(one) for name, one in value.items()}}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value


def _whole(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_whole(one) for one in value)
    if not isinstance(value, dict):
        return value
    kind, content = value["is"], value["of"]
    if kind == "Phase":
        return Phase(content)
    if kind == "bytes":
        return bytes.fromhex(content)
    fields = {name: _whole(one) for name, one in content.items()}
    return fields if kind == "map" else _VALUES[kind](**fields)
