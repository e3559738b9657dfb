"""The tokenizer's files as one value: to fingerprint them, and to bring them to workers that do not see the model."""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import json
import os
import pickle
import tempfile
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

from jobs.errors import DataError
from jobs.model_files.chat_template import no_chat_template
from jobs.storage import files as storage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What transformers reads a tokenizer from. config.json only tells it the class where tokenizer_config.json does not.
_PATTERNS = (
    "tokenizer*",
    "special_tokens_map*",
    "added_tokens*",
    "vocab*",
    "merges*",
    "chat_template*",
    "*.model",
    "*.spm",
    "*.tiktoken",
)
_NO_WEIGHTS_BYTES = 256 * 2**20


@dataclass(frozen=True)
class TokenizerFiles:
    """All of a tokenizer's files, read; small enough to travel to workers."""

    source: str  # the model directory, for messages
    files: tuple[tuple[str, bytes], ...]  # (name, content), sorted by name; config.json holds model_type only
    pickled: bytes | None = field(default=None, compare=False, repr=False)  # see `for_workers`

    @functools.cached_property
    def digests(self) -> dict[str, str]:
        """sha256 of each file."""
        return {name: hashlib.sha256(content).hexdigest() for name, content in self.files}

    def load(self) -> PreTrainedTokenizerBase:
        """The tokenizer, loaded once per process. Raises DataError."""
        key = hashlib.sha256(repr(sorted(self.digests.items())).encode()).hexdigest()
        if key not in _LOADED and self.pickled is not None:
            _LOADED[key] = pickle.loads(self.pickled)
        if key not in _LOADED:
            with tempfile.TemporaryDirectory(prefix="fleetune-tokenizer-") as folder:
                for name, content in self.files:
                    with open(os.path.join(folder, name), "wb") as file:
                        file.write(content)
                if len(_LOADED) >= 4:
                    _LOADED.clear()
                _LOADED[key] = _from_dir(folder, self.source)
        return cast("PreTrainedTokenizerBase", _LOADED[key])

    def for_workers(self) -> TokenizerFiles:
        """The same with the loaded tokenizer inside, which a worker takes up in a quarter of the time.

        To load it from files, transformers imports torch first. Only for workers of this driver's own.
        """
        return replace(self, pickled=pickle.dumps(self.load()))


_LOADED: dict[str, Any] = {}  # by content, so that a directory that was written anew is not taken for the old one


def read_tokenizer(model_dir: str) -> TokenizerFiles:
    """Read the tokenizer's files of a model directory (a path or fsspec URL).

    Raises:
        DataError: it has none, or one is too large to be a tokenizer's.
        StorageError: it cannot be read.
    """
    names = [
        name
        for name in storage.list_names(model_dir)
        if any(fnmatch.fnmatch(name, pattern) for pattern in _PATTERNS)
        and not storage.is_dir(storage.join(model_dir, name))
    ]
    if not names:
        raise DataError(f"{model_dir} holds no tokenizer: copy tokenizer.json and tokenizer_config.json into it")
    files = [(name, _read_small(storage.join(model_dir, name))) for name in names]
    config = storage.join(model_dir, "config.json")
    if storage.exists(config):
        files.append(("config.json", _model_type(config)))
    return TokenizerFiles(model_dir, tuple(sorted(files)))


def _read_small(path: str) -> bytes:
    fs, inner = storage.filesystem(path)
    if fs.size(inner) > _NO_WEIGHTS_BYTES:
        raise DataError(f"{path} is too large for a tokenizer's file: move it out of the model directory")
    return storage.read_bytes(path)


def _model_type(path: str) -> bytes:
    try:
        config = json.loads(storage.read_bytes(path))
        return json.dumps({"model_type": config["model_type"]} if "model_type" in config else {}).encode()
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is not a JSON object: {error}. Fetch the model again.") from error


def load_tokenizer(model_dir: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model directory; loaded once per process, never running code from the directory.

    Raises:
        DataError: there is no tokenizer that transformers can load.
        StorageError: the directory cannot be read.
    """
    return read_tokenizer(model_dir).load()


def _from_dir(folder: str, source: str) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # a damaged file raises whatever its parser raises
        raise DataError(
            f"cannot load the tokenizer in {source}: {type(error).__name__}: {error}. "
            "Check that the directory holds tokenizer.json and tokenizer_config.json, whole."
        ) from error
    return cast("PreTrainedTokenizerBase", tokenizer)


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, data_format: str, model_dir: str) -> None:
    """Refuse a tokenizer that `tokenise` cannot use for the format. Raises DataError."""
    if data_format == "chat" and not tokenizer.chat_template:
        raise no_chat_template(model_dir)
    if data_format not in ("text", "classification") and not tokenizer.is_fast:
        raise DataError(
            f"data.format is {data_format}, but the tokenizer in {model_dir} has no tokenizer.json: only those tell "
            "which characters a token covers, which is how the targets are found. Convert it to a fast one."
        )


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """What fills a row behind its tokens; masked, so any valid id does."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(cast(int, token))
    return 0
