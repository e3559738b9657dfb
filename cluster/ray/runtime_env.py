"""The runtime environment of a Ray job: where Ray unpacks its working directory, and a digest of its private parts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

RAY_PACKAGE: Final = "/runtime_resources/working_dir_files/"  # of a session, where Ray unpacks --working-dir


def digest_of_environment(runtime_env: Mapping[str, Any]) -> str:
    """Digest the private parts of a runtime environment: variables and working directory.

    Other parts are left out: Ray writes packages differently in different places.
    """
    private = {name: runtime_env.get(name) or None for name in ("env_vars", "working_dir")}
    return hashlib.sha256(json.dumps(private, sort_keys=True).encode()).hexdigest()[:16]
