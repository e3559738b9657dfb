"""Checks whether a directory holds a trainable model, and fetches models to this machine. Light to import."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable
from typing import Any

from cluster.errors import DataError, SpecError, StorageError, StorageOutage
from cluster.text import one_line
from jobs.model_files.architecture import architecture_problems
from jobs.model_files.configuration import config_problems
from jobs.model_files.lora_targets import targets_problem
from jobs.model_files.positions import beyond_positions, learned_positions
from jobs.model_files.sizes import VOCABULARY, size_in
from jobs.spec.finetune import Spec
from jobs.storage import files as storage
from jobs.storage.listing import version_of
from jobs.storage.outages import is_outage

INDEX = "model.safetensors.index.json"
# Endings of files of weights, whether or not they can be read.
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".gguf", ".h5", ".msgpack", ".onnx")
# Each of these sets of files is enough for a tokenizer.
TOKENIZER_FILES = (
    ("tokenizer.json",),
    ("vocab.txt",),
    ("vocab.json", "merges.txt"),
    ("tokenizer.model",),
    ("spiece.model",),
    ("sentencepiece.bpe.model",),
)
_DIGESTED_BYTES = 4096  # of each tensor
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_TOKENIZER = ["*.json", "*.txt", "*.model", "*.jinja"]
_WANTED = [*_TOKENIZER, "*.safetensors"]


def check_model_dir(spec: Spec) -> None:
    """Check the spec's model as far as this machine can: a directory fully, a URL for its config, a hub id not at all.

    Raises:
        DataError: all mistakes, one a line.
        SpecError: the LoRA rank is larger than all matrices of the model, or a target matches no module.
    """
    path = spec.model.path
    if storage.is_local(path):
        local = storage.local_path(path)
        if os.path.isabs(local):  # a relative name is a hub id: see `jobs.spec.load`
            check_model_files(local, spec)
            _check_lora(local, spec)
    elif not storage.exists(storage.join(path, "config.json")):
        raise DataError(f"model.path {path}: there is no config.json")


def _check_lora(folder: str, spec: Spec) -> None:
    """Reject a LoRA rank that no matrix in the weights allows, and targets that no name of a weight allows.

    Which matrices get an adapter, only a run knows.
    """
    if spec.method.kind != "lora":
        return
    try:
        shapes = tensor_shapes(folder)
        sides = [min(shape[-2:]) for shape in shapes.values() if len(shape) > 1]
    except (OSError, ValueError, KeyError, TypeError):  # the run's own check of the model reports it
        return
    if problem := targets_problem(spec.lora.target_modules, _read_config(folder)[0].get("model_type"), shapes):
        raise SpecError.at("lora.target_modules", problem)
    if sides and spec.lora.rank > max(sides):
        raise SpecError.at(
            "lora.rank",
            f"{spec.lora.rank} is more than the smaller side of every matrix of the model ({max(sides)}), so the "
            "adapter would be larger than the matrices: use method: full, or a smaller rank",
        )


def check_model_files(folder: str, spec: Spec) -> None:
    """Reject a local directory whose model cannot be trained as the spec asks.

    Raises:
        DataError: all mistakes, one a line.
    """
    try:
        problems = model_files_problems(folder, spec) or tokenizer_problems(folder, spec.needs_own_template)
    except OSError as error:
        problems = [f"cannot be read: {error}"]
    if problems:
        raise DataError("\n".join(f"model.path {folder}: {problem}" for problem in problems))


def model_files_problems(folder: str, spec: Spec) -> list[str]:
    """List what is wrong with the directory's config and weights."""
    if os.path.isfile(folder):
        return ["this is a file: give the directory that holds config.json and *.safetensors"]
    if not os.path.isdir(folder):
        return ["no such directory"]
    config, problem = _read_config(folder)
    problems = [problem] if problem else config_problems(config, spec)
    return problems + _weights_problems(folder)


def _read_config(folder: str) -> tuple[dict[str, Any], str | None]:
    path = os.path.join(folder, "config.json")
    if os.path.exists(adapter := os.path.join(folder, "adapter_config.json")):
        return {}, _adapter_problem(adapter, os.path.exists(path))
    if not os.path.exists(path):
        return {}, "there is no config.json: this is not a Hugging Face model directory"
    try:
        config = json.loads(_read(path))
    except (OSError, ValueError) as error:
        return {}, f"config.json cannot be read: {error}"
    return (config, None) if isinstance(config, dict) else ({}, "config.json is not a JSON object")


def _adapter_problem(path: str, beside_model: bool) -> str:
    if beside_model:
        return (
            "there is adapter_config.json beside config.json, and transformers would add that adapter to the model. "
            "To train the model without it, remove adapter_config.json and adapter_model.safetensors. To train it with "
            "the adapter, merge it (merge_and_unload() in peft) and save the whole model"
        )
    with contextlib.suppress(OSError, ValueError, AttributeError):
        config = json.loads(_read(path))
        if str(config.get("peft_type")).endswith("TUNING"):  # a prompt or a prefix
            base = config.get("base_model_name_or_path")
            return f"this is a prompt, which cannot be merged into a model: give the model that it is for ({base})"
    return (
        "this is an adapter, not a whole model: merge it into its base model. For one that a run has trained, "
        "`fleetune export RUN --merged` does that"
    )


def _read(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def longest_text(folder: str) -> int | None:
    """Return the most tokens that the model in a local directory can read; None if nothing limits them."""
    return learned_positions(_read_config(folder)[0])


def too_long_rows(folder: str, seq_len: int) -> str | None:
    """Describe rows that are longer than those for which the model in a local directory was made, or return None."""
    return beyond_positions(_read_config(folder)[0], seq_len)


def supports_checkpointing(spec: Spec) -> bool:
    """Return False if config.json tells that the model type has no gradient checkpointing, else True."""
    try:
        config = json.loads(storage.read_bytes(storage.join(spec.model.path, "config.json")))
    except (StorageError, ValueError):  # a hub id, or an outage
        return True
    asked = spec.with_value("train.gradient_checkpointing", True)
    return not (isinstance(config, dict) and architecture_problems(config, asked))


def _weights_problems(folder: str) -> list[str]:
    names = sorted(os.listdir(folder))
    shards = [name for name in names if name.endswith(".safetensors")]
    if INDEX in names:
        try:
            wanted = sorted(set(json.loads(_read(os.path.join(folder, INDEX)))["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError) as error:
            return [f"{INDEX} cannot be read: {type(error).__name__}: {error}"]
        if missing := [name for name in wanted if name not in names]:
            return [f"{len(missing)} of {len(wanted)} weight files of {INDEX} are missing, the first is {missing[0]}"]
        shards = [str(name) for name in wanted]
    if shards:
        broken = {name: safetensors_problem(os.path.join(folder, name)) for name in shards}
        return [f"{name} {problem}" for name, problem in broken.items() if problem]
    if pickles := [name for name in names if name.endswith(_PICKLES)]:
        return [
            f"the weights are pickles ({', '.join(pickles[:3])}), which are never loaded because they can run code. "
            "Convert them to safetensors with model.save_pretrained(DIR) on a machine that may run them"
        ]
    gguf = " (a GGUF file cannot be trained: convert it first)" if any(n.endswith(".gguf") for n in names) else ""
    return [f"there are no weights: no *.safetensors{gguf}"]


def safetensors_problem(path: str) -> str | None:
    """Compare a file's length with its header, which finds truncated downloads and Git LFS pointers."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length + 8 > size:
            return f"is truncated or not a safetensors file ({size} bytes): fetch it again"
        try:
            tensors = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in tensors.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError):
            return "has no readable header: fetch it again"
    expected = 8 + length + max(ends, default=0)
    return None if size == expected else f"has {size} bytes, but its header says {expected}: fetch it again"


def weight_files(folder: str) -> list[str]:
    """Return the names of a local directory's safetensors files: those of the index, if there is one."""
    if os.path.exists(index := os.path.join(folder, INDEX)):
        return sorted(set(json.loads(_read(index))["weight_map"].values()))
    return sorted(name for name in os.listdir(folder) if name.endswith(".safetensors"))


def tensor_names(folder: str) -> set[str]:
    """Return the names of all tensors in a local directory's safetensors files."""
    if os.path.exists(index := os.path.join(folder, INDEX)):
        return set(json.loads(_read(index))["weight_map"])
    return set(tensor_shapes(folder))


def tensor_shapes(folder: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors in a local directory's safetensors files, by name."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file_name in weight_files(folder):
        header = json.loads(safetensors_header(os.path.join(folder, file_name)))
        shapes |= {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    return shapes


def weights_digest(folder: str) -> str:
    """Compute a digest of the first bytes of every tensor in a local directory's safetensors files.

    It takes little time also for large models. Full fine-tuning changes every tensor, so a tuned model has another
    digest. The division into files does not matter.
    """
    found: dict[str, str] = {}
    for file_name in weight_files(folder):
        path = os.path.join(folder, file_name)
        header = safetensors_header(path)
        with open(path, "rb") as file:
            for name, entry in json.loads(header).items():
                if name == "__metadata__":
                    continue
                begin, end = entry["data_offsets"]
                file.seek(8 + len(header) + begin)
                digest = hashlib.sha256(f"{name} {entry['dtype']} {entry['shape']}".encode())
                digest.update(file.read(min(end - begin, _DIGESTED_BYTES)))
                found[name] = digest.hexdigest()
    return hashlib.sha256(json.dumps(sorted(found.items())).encode()).hexdigest()[:32]


def safetensors_header(path: str) -> bytes:
    """Return the JSON that describes the tensors of a complete file."""
    with open(path, "rb") as file:
        return file.read(struct.unpack("<Q", file.read(8))[0])


def vocabulary_of(folder: str) -> int | None:
    """Return the number of tokens that a local directory's model has; None if its configuration does not say it."""
    return size_in(_read_config(folder)[0], VOCABULARY)


def tokenizer_problems(folder: str, chat: bool) -> list[str]:
    """List what is wrong with the directory's tokenizer. With `chat`, it needs a chat template."""
    names = set(os.listdir(folder))
    if not any(names.issuperset(files) for files in TOKENIZER_FILES):
        return [
            "there is no tokenizer: no tokenizer.json, vocab.txt, vocab.json with merges.txt, or tokenizer.model. "
            "Copy it from the model that this one was made from: "
            "AutoTokenizer.from_pretrained(BASE).save_pretrained(THIS)"
        ]
    if chat and not has_chat_template(folder):
        return [
            "data.format is chat, but the tokenizer has no chat template: take the instruct model's tokenizer, or give "
            "a template in model.chat_template"
        ]
    return []


def has_chat_template(folder: str) -> bool:
    if any(os.path.exists(os.path.join(folder, name)) for name in ("chat_template.jinja", "chat_template.json")):
        return True
    try:
        return bool(json.loads(_read(os.path.join(folder, "tokenizer_config.json"))).get("chat_template"))
    except (OSError, ValueError, AttributeError):
        return False


def saved_dtype(folder: str) -> str | None:
    """Return the type of numbers in which the weights were saved, as config.json says; None if it does not."""
    config, _ = _read_config(folder)
    found = config.get("dtype", config.get("torch_dtype"))
    return found if isinstance(found, str) else None


def local_model_dir(path: str, cache_dir: str | None = None) -> str:
    """Return a local directory with the model of `model.path`. A remote model is fetched once per machine.

    Args:
        path: absolute directory, fsspec URL or hub id.
        cache_dir: directory for models that are fetched from URLs; default: ~/.cache/fleetune/models.

    Raises:
        DataError: the model cannot be fetched.
        StorageError: the URL cannot be read.
        StorageOutage: the storage or the hub does not answer now.
    """
    if storage.is_local(path):
        local = storage.local_path(path)
        return local if os.path.isdir(local) or os.path.isabs(local) else _from_hub(path)
    return fetched_once(path, cache_dir, storage.fetch_dir)


def fetched_once(url: str, cache_dir: str | None, fetch: Callable[[str, str], None], suffix: str = "") -> str:
    """Return a local directory that `fetch(url, directory)` has filled, now or for an earlier caller.

    Args:
        suffix: appended to the directory's name, for another part of the same model.

    Raises:
        DataError: there is nothing at the URL.
        StorageError: the URL cannot be listed or read.
    """
    cache = cache_dir or os.path.expanduser("~/.cache/fleetune/models")
    target = os.path.join(cache, _content_key(url) + suffix)
    os.makedirs(cache, exist_ok=True)
    with open(f"{target}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other workers of this machine wait here, and then find it complete
        if not os.path.isdir(target):
            _fetch(url, target, fetch)
    return target


def _content_key(url: str) -> str:
    """Return a key that changes with the files at the URL, as far as sizes and `version_of` show."""
    with storage.reached("list", url) as (fs, inner):
        fs.invalidate_cache()
        listing = fs.find(inner, detail=True)
    if not listing:
        raise DataError(f"model.path {url}: there is nothing at this URL")
    facts = [(name, info.get("size"), version_of(info) or "") for name, info in sorted(listing.items())]
    return hashlib.sha256(json.dumps([url, facts]).encode()).hexdigest()[:24]


def _fetch(url: str, target: str, fetch: Callable[[str, str], None]) -> None:
    beside = f"{target}.part"
    shutil.rmtree(beside, ignore_errors=True)  # of a caller that was killed
    os.mkdir(beside)
    try:
        fetch(url, beside)
        os.rename(beside, target)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def tokenizer_dir(path: str, chat: bool) -> str:
    """Return the directory or URL of the tokenizer of `model.path`. Weights are neither fetched nor checked.

    Raises:
        DataError: there is no tokenizer, or `chat` is set and it has no chat template.
    """
    if not storage.is_local(path):
        return path
    local = storage.local_path(path)
    if not os.path.isdir(local):
        if os.path.isabs(local):
            raise DataError(f"model.path {local}: no such directory")
        local = _from_hub(path, _TOKENIZER)
    if problems := tokenizer_problems(local, chat):
        raise DataError("\n".join(f"model.path {local}: {problem}" for problem in problems))
    return local


def _from_hub(name: str, wanted: list[str] = _WANTED) -> str:
    """Fetch a model, or find it in the hub's cache on this machine. Raises DataError, StorageOutage."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise DataError(f"model.path {name} is on the hub, and huggingface_hub is not installed here") from error
    try:
        return snapshot_download(name, allow_patterns=wanted)
    except Exception as error:  # covers network, authentication, a missing repository and a full disk
        reason = one_line(str(error)) or "no reason given"
        kind = StorageOutage if is_outage(error, local=False) and not _is_without_internet(error) else DataError
        raise kind(
            f"model.path {name}: no such directory beside the spec's file, and it cannot be fetched from the hub "
            f"({type(error).__name__}: {reason}). Give a local directory, or a name that the hub has; for a gated "
            "model log in with `hf auth login`"
        ) from error


def _is_without_internet(error: BaseException | None) -> bool:
    """Whether the hub could not be connected to. A retry seldom helps: most such names are meant as directories."""
    if error is None:
        return False
    return type(error).__name__ in ("ConnectError", "OfflineModeIsEnabled") or _is_without_internet(error.__cause__)
