"""Text that the base model writes by itself: a source for replay if there is no other general text.

The samples begin with the token that begins a text. They are drawn without top-k or top-p, so likely and unlikely texts
come as often as the model predicts. Each batch has its own seed, so a generation that was interrupted continues after
its last whole batch. Beside the file, `<file>.generated` holds the settings and the hash of the model and of the file
(`Generated`).
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, TextIO

from pydantic import Field, ValidationError

from cluster.errors import DataError, StorageError
from cluster.local.locks import try_lock
from cluster.text import many
from jobs.frozen import Frozen
from jobs.model_files.directory import weight_files
from jobs.storage import files as storage

_BATCH: Final = 16  # samples that are drawn together; part of what determines them
_LEAST_TOKENS: Final = 8  # of a sample, so that hardly any is empty
_SAY_EVERY_S: Final = 10.0
_MODEL_FILES: Final = (".json", ".txt", ".model", ".jinja")  # beside the weights

Say = Callable[[str], None]


class Settings(Frozen):
    """The settings of a generation. Equal settings give equal texts on one kind of processor and release of torch."""

    model: str = Field(description="SHA-256 over the names and contents of the model's files.")
    samples: int
    max_tokens: int
    temperature: float
    seed: int


class Generated(Frozen):
    """The record that stands beside a file of generated texts."""

    settings: Settings
    sha256: str | None = Field(None, description="Of the file; null while it is being written.")


def record_path(to: str) -> str:
    return f"{to}.generated"


def generate(model_dir: str, to: str, settings: Settings, say: Say) -> int:
    """Write JSON lines {"text": ...} to a local file, unless it has been generated with the same settings.

    Args:
        model_dir: local directory of a causal language model.

    Returns:
        The number of samples that were drawn now.

    Raises:
        DataError: there is another file; or the model cannot write text.
        StorageError: the file cannot be written.
    """
    check_target(to)
    part = f"{to}.part"
    with _locked(part, to) as file:
        record = read_record(to)
        if os.path.exists(to):
            os.unlink(part)
            if check_same(to, record, settings).sha256 is None:
                _write_record(to, settings, _sha256(to))
            return 0
        kept = _whole_batches(part) if record is not None and record.settings == settings else _Kept()
        if kept.samples:
            say(f"{kept.samples:,} samples were drawn before")
        file.truncate(kept.size)  # before the record: texts of other settings must never stand beside it
        _write_record(to, settings, None)
        _draw(file, kept, model_dir, settings, say)
        os.fsync(file.fileno())
        os.replace(part, to)
        _write_record(to, settings, _sha256(to))
        return settings.samples - kept.samples


class _Kept(NamedTuple):
    """The whole batches of a partial file."""

    batches: int = 0  # number of the next batch
    samples: int = 0
    size: int = 0  # bytes


def _draw(file: TextIO, kept: _Kept, model_dir: str, settings: Settings, say: Say) -> None:
    """Append the samples that are missing, batch by batch."""
    count, began = kept.samples, time.monotonic()
    told = began
    for number, texts in _batches(model_dir, settings, kept.batches, say):
        some = texts[: settings.samples - count]
        file.writelines(f"{json.dumps({'text': text, 'batch': number}, ensure_ascii=False)}\n" for text in some)
        file.flush()
        count += len(some)
        if count == settings.samples:
            return
        if number >= 10 + 2 * settings.samples // _BATCH:
            raise DataError(f"the model in {model_dir} writes hardly anything but empty texts: use other text")
        if time.monotonic() - told > _SAY_EVERY_S:
            told = time.monotonic()
            a_minute = 60 * (count - kept.samples) / (told - began)
            say(f"{count:,} of {many(settings.samples, 'sample')}, {a_minute:,.0f} a minute")


def check_target(to: str) -> None:
    """Raise DataError if a source of samples could not have this path."""
    if storage.is_url(to):
        raise DataError(f"{to} is a URL: generate into a local file, and copy it with fleetune upload")
    if not to.endswith(".jsonl"):
        raise DataError(f"{to}: the name must end with .jsonl, because the texts are written as JSON lines")
    if not os.path.isdir(folder := os.path.dirname(os.path.abspath(to))):
        raise DataError(f"{to}: there is no directory {folder}")


def read_record(to: str) -> Generated | None:
    """Return the record of a file; None if the file was not generated."""
    try:
        return Generated.model_validate_json(Path(record_path(to)).read_bytes())
    except (OSError, ValidationError):
        return None


def check_same(to: str, record: Generated | None, settings: Settings) -> Generated:
    """Return the record of a file that exists.

    Raises:
        DataError: the file was not generated with these settings, or has changed since then.
    """
    remedy = "Choose another file, or remove it"
    if record is None:
        raise DataError(f"{to} exists, and was not generated by this command. {remedy}")
    old, new = record.settings.model_dump(), settings.model_dump()
    changed = [f"{name} {old[name]} -> {new[name]}" for name in old if old[name] != new[name] and name != "model"]
    changed += ["another model"] if old["model"] != new["model"] else []
    if changed:
        raise DataError(f"{to} was generated with other settings ({', '.join(changed)}). {remedy}")
    # The hash is missing if the process ended after it had renamed the file.
    if record.sha256 is not None and _sha256(to) != record.sha256:
        raise DataError(f"{to} was changed after it was generated. {remedy}")
    return record


def model_digest(model_dir: str) -> str:
    """Compute the SHA-256 over the names and contents of a model's files."""
    digest = hashlib.sha256()
    wanted = set(weight_files(model_dir))
    for path in sorted(Path(model_dir).iterdir()):
        if path.is_file() and (path.name in wanted or path.suffix in _MODEL_FILES):
            digest.update(f"{path.name}\n{_sha256(str(path))}\n".encode())
    return digest.hexdigest()


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _seed(seed: int, batch: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {batch}".encode()).digest()[:7])


@contextlib.contextmanager
def _locked(part: str, to: str) -> Iterator[TextIO]:
    """Open the partial file and lock it.

    Raises:
        DataError: another process has it.
        StorageError: it cannot be opened, or written inside of the block.
    """
    try:
        with open(part, "a+", encoding="utf-8") as file:
            if not try_lock(file.fileno()) or not _is_at(file, part):  # another process may just have renamed it
                raise DataError(f"another process is generating {to}: wait for it, or choose another file")
            yield file
    except OSError as error:
        raise StorageError(
            f"{to} cannot be written: {error.strerror or error}. Mend that and repeat the command: it continues"
        ) from error


def _is_at(file: TextIO, path: str) -> bool:
    return os.path.exists(path) and os.path.samestat(os.fstat(file.fileno()), os.stat(path))


def _write_record(to: str, settings: Settings, sha256: str | None) -> None:
    storage.write_bytes(record_path(to), Generated(settings=settings, sha256=sha256).model_dump_json().encode())


def _whole_batches(part: str) -> _Kept:
    """Look at all batches in a partial file except the last one, which may be incomplete."""
    kept, newest, samples, size = _Kept(), None, 0, 0
    with open(part, "rb") as file:
        for line in file:
            try:
                batch = json.loads(line)["batch"]
            except (ValueError, KeyError):  # the end of a write that was cut off
                break
            if batch != newest:
                kept, newest = _Kept(batch, samples, size), batch
            samples, size = samples + 1, size + len(line)
    return kept


def _batches(model_dir: str, settings: Settings, first: int, say: Say) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of each batch and its texts that are not empty."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    on_gpu = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if on_gpu else ("cpu", torch.float32)
    say(f"loading the model on {'a GPU' if on_gpu else 'the CPU'}")
    tokenizer = AutoTokenizer.from_pretrained(model_dir, trust_remote_code=False)
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if start is None:
        raise DataError(f"the tokenizer in {model_dir} has no token that begins a text (bos_token or eos_token)")
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=dtype, trust_remote_code=False)
    except OSError as error:
        raise DataError(f"the model in {model_dir} cannot be loaded: {error}") from error
    model = model.to(device).eval()
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=settings.temperature,
        top_k=0,
        top_p=1.0,
        min_new_tokens=min(_LEAST_TOKENS, settings.max_tokens),
        max_new_tokens=settings.max_tokens,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else start,
    )
    say(f"drawing texts of up to {settings.max_tokens:,} tokens, {_BATCH} at a time")
    begin = torch.full((_BATCH, 1), start, device=device)
    for number in itertools.count(first):
        torch.manual_seed(_seed(settings.seed, number))
        with torch.inference_mode():
            drawn = model.generate(begin, attention_mask=torch.ones_like(begin))
        texts = tokenizer.batch_decode(drawn, skip_special_tokens=True)
        yield number, [text for text in texts if text.strip()]
