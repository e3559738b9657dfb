"""Text that the base model writes by itself: a source for replay if there is no other general text.

The samples begin with the token that begins a text, and are drawn without top-k or top-p, so they are a sample of what
the model has learned. Each batch has its own seed, so a generation that was interrupted continues after its last whole
batch. Beside the file, `<file>.generated` holds the settings and the hash of the model and of the file (`Generated`).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from pydantic import Field, ValidationError

from cluster.text import many
from jobs.errors import DataError
from jobs.frozen import Frozen
from jobs.model_files.directory import weight_files
from jobs.storage.files import is_url

_BATCH: Final = 16  # samples that are drawn together; part of what determines them
_LEAST_TOKENS: Final = 8  # of a sample, so that hardly any is empty
_SAY_EVERY_S: Final = 10.0
_MODEL_FILES: Final = (".json", ".txt", ".model", ".jinja")  # beside the weights

Say = Callable[[str], None]


class Settings(Frozen):
    """What determines the texts, apart from the kind of processor and the release of torch."""

    model: str = Field(description="SHA-256 over the names and contents of the model's files.")
    samples: int
    max_tokens: int
    temperature: float
    seed: int


class Generated(Frozen):
    """What is known of a file of generated texts."""

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
    """
    check_target(to)
    part, record = f"{to}.part", read_record(to)
    if os.path.exists(to):
        check_same(to, record, settings)
        return 0
    with open(part, "a+", encoding="utf-8") as file:
        _lock(file, to)
        drawn = [] if record is None or record.settings != settings else _whole_batches(part)
        if drawn:
            say(f"{many(len(drawn), 'sample')} were drawn before")
        _write(record_path(to), Generated(settings=settings).model_dump_json())
        file.truncate(0)
        file.writelines(f"{json.dumps(line, ensure_ascii=False)}\n" for line in drawn)
        file.flush()
        first = drawn[-1]["batch"] + 1 if drawn else 0
        count, began, told = len(drawn), time.monotonic(), time.monotonic()
        batches = _batches(model_dir, settings, first, say) if count < settings.samples else iter(())
        while count < settings.samples:
            number, texts = next(batches)
            for text in texts[: settings.samples - count]:
                file.write(f"{json.dumps({'text': text, 'batch': number}, ensure_ascii=False)}\n")
                count += 1
            file.flush()
            if number >= 10 + 2 * settings.samples // _BATCH:
                raise DataError(f"the model in {model_dir} writes hardly anything but empty texts: use other text")
            if time.monotonic() - told > _SAY_EVERY_S:
                told = time.monotonic()
                rate = (count - len(drawn)) / (told - began)
                say(f"{count:,} of {settings.samples:,} samples, {rate:.2g} in a second")
        os.fsync(file.fileno())
    os.replace(part, to)
    _write(record_path(to), Generated(settings=settings, sha256=_sha256(to)).model_dump_json())
    return settings.samples - len(drawn)


def check_target(to: str) -> None:
    """Raise DataError if a source of samples could not have this path."""
    if is_url(to):
        raise DataError(f"{to} is a URL: generate into a local file, and copy it with fleetune upload")
    if not to.endswith(".jsonl"):
        raise DataError(f"{to}: the name must end with .jsonl, because the texts are written as JSON lines")
    if not os.path.isdir(folder := os.path.dirname(os.path.abspath(to))):
        raise DataError(f"{to}: there is no directory {folder}")


def read_record(to: str) -> Generated | None:
    """Return what is known of a file; None if it was not generated."""
    try:
        return Generated.model_validate_json(Path(record_path(to)).read_bytes())
    except (OSError, ValidationError):
        return None


def check_same(to: str, record: Generated | None, settings: Settings) -> None:
    """Raise DataError unless the file was generated with these settings, and has not changed since."""
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


def _lock(file: Any, to: str) -> None:
    """Lock an open file until it is closed. Raises DataError if another process has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise DataError(f"another process is generating {to}") from None


def _write(path: str, text: str) -> None:
    partial = f"{path}.part"
    Path(partial).write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _whole_batches(part: str) -> list[dict[str, Any]]:
    """Return the lines of all batches in a partial file but the last, which may be incomplete."""
    lines: list[dict[str, Any]] = []
    with contextlib.suppress(OSError), open(part, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                lines.append(json.loads(line))
            except ValueError:
                break
    last = lines[-1]["batch"] if lines else 0
    return [line for line in lines if line["batch"] < last]


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
    model: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=dtype, trust_remote_code=False).to(device).eval()
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
    begin = torch.full((_BATCH, 1), start, device=device)
    for number in itertools.count(first):
        torch.manual_seed(_seed(settings.seed, number))
        with torch.inference_mode():
            drawn = model.generate(begin, attention_mask=torch.ones_like(begin))
        texts = tokenizer.batch_decode(drawn, skip_special_tokens=True)
        yield number, [text for text in texts if text.strip()]
