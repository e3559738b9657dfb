"""Checks specs that arrive as JSON: fast if they are valid, and with all mistakes in one message if not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

from pydantic import ValidationError

from cluster.errors import SpecError
from jobs.spec.checking.fields import SPEC_MODELS
from jobs.spec.finetune import SCHEMA_VERSION
from jobs.spec.load import AnySpec, spec_of, too_large


def checked(value: Mapping[str, Any]) -> AnySpec:
    """Return the spec. Raises SpecError with all mistakes, one a line."""
    check_version(value)
    kind = value.get("kind", "finetune")
    model = SPEC_MODELS.get(kind) if isinstance(kind, str) else None  # type: ignore[call-overload]
    if model is not None and too_large(value) is None:
        try:
            return cast(AnySpec, model.model_validate_json(json.dumps(value), strict=True))
        except (ValidationError, ValueError, TypeError, RecursionError):
            pass  # `spec_of` below finds the mistakes again and describes them for people
    return spec_of(value)


def check_version(value: Mapping[str, Any]) -> None:
    """Raise SpecError for a spec that a newer release wrote."""
    version = value.get("version", SCHEMA_VERSION)
    if isinstance(version, int | float) and version > SCHEMA_VERSION:
        raise SpecError(
            f"version: written for schema version {str(version)[:40]}; this server reads {SCHEMA_VERSION}: upgrade the "
            "server"
        )
