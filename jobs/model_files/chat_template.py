"""Checks whether a model directory has a chat template, without transformers."""

from __future__ import annotations

import json

from jobs.errors import DataError
from jobs.storage import files as storage

_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")


def has_chat_template(model_dir: str) -> bool:
    """Whether the tokenizer of a model directory (a path or fsspec URL) has a chat template.

    Raises:
        DataError: tokenizer_config.json is not JSON.
        StorageError: the directory cannot be read.
    """
    names = storage.list_names(model_dir)
    if any(name in names for name in _TEMPLATE_FILES):
        return True
    if "tokenizer_config.json" not in names:
        return False
    path = storage.join(model_dir, "tokenizer_config.json")
    try:
        config = json.loads(storage.read_bytes(path))
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}. Fetch the model again.") from error
    return isinstance(config, dict) and bool(config.get("chat_template"))


def no_chat_template(model_dir: str) -> DataError:
    """Make the error for chat data with a tokenizer that has no chat template."""
    return DataError(
        f"data.format is chat, but the tokenizer in {model_dir} has no chat template. Take an instruct model, put a "
        "chat_template.jinja beside its tokenizer, or use data.format: text"
    )
