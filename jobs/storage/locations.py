"""Decides which paths and URLs Fleetune opens. Pure: `files` asks this module before it opens anything.

One list of allowed protocols holds for specs, jobs and the server, because fsspec knows some fifty protocols. Several
of them read local files (`local://`), wrap other URLs (`simplecache::file://...`) or fetch any address (`http://`).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final
from urllib.parse import unquote

from cluster.settings import PROTOCOL

PROTOCOLS: Final = ("file", "s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "hf")
# Other names of the same storage, so that a restriction on one name holds for all names.
_SAME: Final = {"s3a": "s3", "gcs": "gs", "abfss": "abfs", "az": "abfs"}
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_SHOWN: Final = 200  # characters of a wrong value that a message shows


def problem(text: str, extra: Collection[str]) -> str | None:
    """Return why Fleetune does not open a path or URL; None if it does.

    Args:
        extra: protocols that an administrator has added to `PROTOCOLS`.
    """
    if (wrong := form_problem(text)) is not None:
        return wrong
    protocol = text.partition("://")[0] if "://" in text else "file"
    if protocol in PROTOCOLS or protocol in extra:
        return None
    known = ", ".join(f"{name}://" for name in (*PROTOCOLS, *sorted(extra)))
    return (
        f"{shown(text)}: the protocol {protocol}:// is not allowed. Allowed are paths and {known}. An administrator "
        "allows another one with FLEETUNE_PROTOCOLS in the environment of the server, or of the run without a server"
    )


def form_problem(text: str) -> str | None:
    """Return why a text is neither a path nor a URL, whichever protocols are allowed; None if it is one."""
    if wrong := _spelling_problem(text):
        return f"{shown(text)} {wrong}"
    return None


def _located(text: str) -> tuple[str, ...] | None:
    """Split a path or URL into protocol and names from the root down, so that two spellings of one location are equal.

    None for a relative path, for a path with `..` and for any other text.
    """
    if form_problem(text) is not None:
        return None
    protocol, slashes, rest = text.partition("://")
    if not slashes or protocol == "file":
        names = (rest if slashes else text).split("/")
        return None if names[0] or ".." in names else ("file", *(name for name in names if name not in ("", ".")))
    return (_SAME.get(protocol, protocol), *rest.rstrip("/").split("/"))


def is_under(text: str, root: str) -> bool:
    """Whether a path or URL lies at or under a root. Whole names are compared, not prefixes of text."""
    place, above = _located(text), _located(root)
    return place is not None and above is not None and place[: len(above)] == above


def shown(text: str) -> str:
    """Format a path or URL for a message: shortened, and without control characters."""
    safe = _CONTROL.sub(lambda match: repr(match[0])[1:-1], text)
    return safe if len(safe) <= _SHOWN else f"{safe[:_SHOWN]}..."


def _spelling_problem(text: str) -> str | None:
    if "\0" in text:
        return "contains a zero byte"
    if text != text.strip():
        return "begins or ends with white space"
    if "::" in text:
        return "contains '::', which would chain URLs: give one path or URL"
    head, colon, rest = text.partition(":")
    if not colon or "/" in head:
        return "has '://' in the middle of a path" if "://" in text else None
    if rest.startswith("//"):
        return _url_problem(head, rest[2:])
    if len(head) == 1 and rest.startswith(("\\", "/")):
        return "is a Windows path: give a path that begins with /"
    if PROTOCOL.fullmatch(head.lower()):
        return f"is neither a path nor a URL: write {head.lower()}://... for a URL, or ./{shown(text)} for a path"
    return "has '://' in the middle of a path" if "://" in text else None


def _url_problem(protocol: str, rest: str) -> str | None:
    if not PROTOCOL.fullmatch(protocol):
        lower = protocol.lower()
        return (
            f"must begin with {lower}:// in lower case" if PROTOCOL.fullmatch(lower) else "has no protocol before ://"
        )
    if _CONTROL.search(rest) or "\\" in rest or "://" in rest:
        return "contains a control character, a backslash or a second '://'"
    if ".." in unquote(rest).replace("\\", "/").split("/"):
        return "contains '..': give the whole URL without it"
    if protocol == "file":
        return None if rest.startswith("/") else "names a host: write file:/// and an absolute path"
    if protocol in PROTOCOLS:
        return _bucket_problem(protocol, rest.partition("/")[0])
    return None


def _bucket_problem(protocol: str, bucket: str) -> str | None:
    if not bucket:
        return "names no bucket"
    if ":" in bucket or ("@" in bucket and protocol != "hf"):
        return (
            "names an account or an address before its path: write only the bucket or container. Account and endpoint "
            "come from the environment of the server and of the workers"
        )
    return None
