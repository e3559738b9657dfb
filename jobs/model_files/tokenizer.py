"""The tokenizer's files as one value, to fingerprint them and to send them to workers that do not see the model."""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import json
import os
import pickle
import tempfile
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, cast

from cluster.errors import DataError
from jobs.storage import files as storage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# Files from which transformers reads a tokenizer. config.json is needed only if tokenizer_config.json names no class.
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
_TEMPLATE = "chat_template.jinja"  # precedes a template in tokenizer_config.json
_NO_WEIGHTS_BYTES = 256 * 2**20  # larger than any tokenizer's file, smaller than most weights


@dataclass(frozen=True)
class TokenizerFiles:
    """The content of all of a tokenizer's files; small enough to send to workers."""

    source: str = field(compare=False)  # the model directory, for messages
    files: tuple[tuple[str, bytes], ...]  # (name, content), sorted by name; config.json holds model_type only
    pickled: bytes | None = field(default=None, compare=False, repr=False)  # see `for_workers`

    @functools.cached_property
    def digests(self) -> dict[str, str]:
        """SHA-256 of each file."""
        return {name: hashlib.sha256(content).hexdigest() for name, content in self.files}

    @property
    def writes_date(self) -> bool:
        """Whether a chat template calls `strftime_now`, which gives today's date."""
        return any(b"strftime_now" in content for name, content in self.files if name.endswith((".json", ".jinja")))

    def load(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer, once per process. Raises DataError."""
        return _loaded(self)

    def for_workers(self) -> TokenizerFiles:
        """Return a copy with the loaded tokenizer inside, which a worker unpacks in a quarter of the time.

        Loading from files would import torch first. Send the copy only to workers of this driver: it is a pickle.
        """
        return replace(self, pickled=pickle.dumps(self.load()))


@functools.lru_cache(maxsize=4)  # by content, so that a directory that was rewritten gets a new tokenizer
def _loaded(tokenizer: TokenizerFiles) -> PreTrainedTokenizerBase:
    if tokenizer.pickled is not None:
        return cast("PreTrainedTokenizerBase", pickle.loads(tokenizer.pickled))
    with tempfile.TemporaryDirectory(prefix="fleetune-tokenizer-") as folder:
        for name, content in tokenizer.files:
            with open(os.path.join(folder, name), "wb") as file:
                file.write(content)
        return _from_dir(folder, tokenizer.source)


def read_tokenizer(model_dir: str, chat_template: str | None = None) -> TokenizerFiles:
    """Read the tokenizer's files of a model directory (a path or fsspec URL).

    Args:
        chat_template: text of a template that replaces its own; None: keep that.

    Raises:
        DataError: there is none, or a file is too large for a tokenizer.
        StorageError: the directory cannot be read.
    """
    names = [
        name
        for name in storage.list_names(model_dir)
        if any(fnmatch.fnmatch(name, pattern) for pattern in _PATTERNS)
        and not storage.is_dir(storage.join(model_dir, name))
    ]
    if not names:
        raise DataError(f"{model_dir} has no tokenizer: copy tokenizer.json and tokenizer_config.json into it")
    files = [(name, _read_small(storage.join(model_dir, name))) for name in names]
    config = storage.join(model_dir, "config.json")
    if storage.exists(config):
        files.append(("config.json", _model_type(config)))
    if chat_template is not None:
        files = [(name, content) for name, content in files if name != _TEMPLATE]
        files.append((_TEMPLATE, chat_template.encode()))
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


def load_tokenizer(model_dir: str, chat_template: str | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model directory, once per process. Never runs code from the directory.

    `chat_template` is as for `read_tokenizer`.

    Raises:
        DataError: there is no tokenizer that transformers can load.
        StorageError: the directory cannot be read.
    """
    return read_tokenizer(model_dir, chat_template).load()


def tokenizer_to_export(model_dir: str, chat_template: str | None) -> PreTrainedTokenizerBase:
    """Load a tokenizer to change and save, with all of its templates; `chat_template` is as for `read_tokenizer`."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir, trust_remote_code=False)
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    return cast("PreTrainedTokenizerBase", tokenizer)


def _from_dir(folder: str, source: str) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # parsers raise anything on a damaged file
        raise DataError(
            f"cannot load the tokenizer in {source}: {type(error).__name__}: {error}. "
            "Check that tokenizer.json and tokenizer_config.json in that directory are complete."
        ) from error
    return cast("PreTrainedTokenizerBase", tokenizer)


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, data_format: str, model_dir: str) -> None:
    """Reject a tokenizer that `tokenise` cannot use for the format. Raises DataError."""
    if data_format == "chat" and not tokenizer.chat_template:
        raise DataError(
            f"data.format is chat, but the tokenizer in {model_dir} has no chat template. Take an instruct model, give "
            "a template in model.chat_template, or use data.format: text"
        )
    if data_format not in ("text", "classification") and not tokenizer.is_fast:
        raise DataError(
            f"data.format is {data_format}, but the tokenizer in {model_dir} has no tokenizer.json. Only tokenizers "
            "with this file tell which characters a token covers, which decides the targets. Convert it to a fast one."
        )


def without_end(tokenizer: PreTrainedTokenizerBase, data_format: str) -> str | None:
    """Warn of answers after which `tokenise` writes no end token; None if it does, or if a chat template ends them."""
    plain = data_format == "prompt-completion" or (data_format == "instruction" and not tokenizer.chat_template)
    if not plain or tokenizer.eos_token_id is not None:
        return None
    return (
        f"data.format is {data_format}, but the tokenizer has no end token, so the model does not learn where an "
        "answer ends: set eos_token in tokenizer_config.json"
    )


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that fills a row after its tokens. Any valid id will do, because it is masked."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(cast(int, token))
    return 0
