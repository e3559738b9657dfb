"""What a path in a spec refers to: a file beside the spec, a model of Hugging Face's hub, or the model of a run."""

from __future__ import annotations

import os
import re
from typing import Final

from cluster.errors import SpecError, StorageError
from cluster.ray.runtime_env import RAY_PACKAGE
from jobs.storage import files as storage

RUN_REFERENCE: Final = re.compile(r"run:([A-Za-z0-9_][A-Za-z0-9._-]*)\Z")
MOST_TEMPLATE_CHARS: Final = 1_000_000
_HUB_ID: Final = re.compile(r"^[\w.-]+(/[\w.-]+)?$")


def run_named(path: str) -> str | None:
    """Return NAME of `run:NAME`; None for every other path, which is a directory, a URL or a hub id."""
    match = RUN_REFERENCE.match(path)
    return match[1] if match else None


def folder_of(path: str) -> str:
    """Return the directory or URL of the file at `path`, to which relative paths in the file refer.

    A directory is given as a path, also if the file is given as file:///path.
    """
    return os.path.dirname(os.path.abspath(storage.local_path(path)) if storage.is_local(path) else path)


def absolute(path: str, base: str) -> str:
    """Make a path absolute, relative to the directory or URL `base`."""
    if storage.is_url(path):
        return path
    path = os.path.expanduser(path)
    if storage.is_url(base) and not os.path.isabs(path):
        return storage.join(base, path.removeprefix("./"))
    return os.path.normpath(os.path.join(base, path))


def absolute_model(path: str, base: str) -> str:
    """Make the path of a model's directory absolute. Model ids of the hub and `run:NAME` are not changed."""
    if run_named(path) is not None:
        return path
    local = path.startswith(("./", "../", "/", "~")) or path in (".", "..") or not _HUB_ID.match(path)
    return absolute(path, base) if local or os.path.isdir(os.path.join(base, path)) else path


def template_text(template: str | None, base: str) -> str | None:
    """Return a chat template's text. A line without Jinja's brackets is a file, which is read, relative to `base`.

    Raises:
        SpecError: the file cannot be read, or is too large for a template.
    """
    if template is None or "\n" in template.strip() or "{{" in template or "{%" in template:
        return template
    path = absolute(template.strip(), base)
    try:
        text = storage.read_bytes(path).decode()
    except StorageError as error:
        raise SpecError.at("model.chat_template", str(error)) from error
    except UnicodeDecodeError as error:
        raise SpecError.at("model.chat_template", f"{path} is not UTF-8: {error}") from error
    if not 0 < len(text) <= MOST_TEMPLATE_CHARS:
        what = f"{path} has {len(text):,} characters, expected a template of at most {MOST_TEMPLATE_CHARS:,}"
        raise SpecError.at("model.chat_template", what)
    return text


def absolute_working_dir(path: str | None, base: str) -> str | None:
    """Make `working_dir` absolute. Raises SpecError if it is a URL."""
    found = None if path is None else absolute(path, base)
    if found is not None and storage.is_url(found):
        what = f"{found} is a URL, but a program needs a directory: give one that every node sees"
        raise SpecError.at("working_dir", what)
    return found


def absolute_storage(path: str, base: str) -> str:
    """Make `storage_path` absolute. Raises SpecError if Ray deletes that directory some time after the job."""
    root = absolute(path, base)
    if RAY_PACKAGE in root:
        raise SpecError(
            f"storage_path {path} lies in the package that Ray unpacked for this job, and would be "
            "deleted with it. Give a directory that every node sees, or a URL, as --set storage_path=/shared/runs"
        )
    return root
