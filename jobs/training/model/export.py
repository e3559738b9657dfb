"""Writes the model as a Hugging Face directory, and reads it back to verify it before the run may succeed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cluster.errors import RunFailed
from jobs.model_files.directory import fetched_once, tensor_names
from jobs.model_files.tokenizer import tokenizer_to_export
from jobs.storage import files as storage
from jobs.training.collectives import from_rank_0, wait_for_all
from jobs.training.model.adapters import trained_names, write_adapter
from jobs.training.model.pooling import reads_padding
from jobs.training.model.tensor_names import naming_of

MAX_SHARD_BYTES = 2_000_000_000  # bounds the memory of rank 0, which holds one file at a time
# Up to this size of the weights, one process reads the exported model back. Larger ones are sharded over the gang.
ONE_PROCESS_BYTES = 1_000_000_000

Shapes = list[tuple[str, int]]  # name and size in bytes


def plan_shards(sizes: Shapes, max_shard_bytes: int = MAX_SHARD_BYTES) -> list[tuple[str, list[str]]]:
    """Divide tensors, in order, into files of at most `max_shard_bytes`; a larger tensor gets its own file. Pure.

    Returns:
        (file name, tensor names) for each file. The file names are those that transformers uses.
    """
    shards: list[list[str]] = []
    free_bytes = -1
    for name, size in sizes:
        if size > free_bytes or not shards:
            shards.append([])
            free_bytes = max_shard_bytes
        shards[-1].append(name)
        free_bytes -= size
    if len(shards) == 1:
        return [("model.safetensors", shards[0])]
    return [(f"model-{number:05d}-of-{len(shards):05d}.safetensors", names) for number, names in enumerate(shards, 1)]


def write_weights(
    folder: str, sizes: Shapes, tensors: Iterable[tuple[str, torch.Tensor]], max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Write tensors, which must come in the order of `sizes`. At most one file's content is in memory.

    Args:
        folder: local path or URL.
        tensors: (name, tensor on any device), consumed one by one.
    """
    from safetensors.torch import save_file

    coming = iter(tensors)
    placed: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="fleetune-export-") as scratch:
        for file_name, names in plan_shards(sizes, max_shard_bytes):
            held = {}
            for expected in names:
                name, tensor = next(coming)
                assert name == expected, (name, expected)
                held[name] = tensor.detach().to("cpu", copy=True).contiguous()
                placed[name] = file_name
            local = os.path.join(scratch, file_name)
            save_file(held, local, metadata={"format": "pt"})
            held.clear()
            storage.put_file(local, storage.join(folder, file_name))
    if len(set(placed.values())) > 1:
        index = {"metadata": {"total_size": sum(size for _, size in sizes)}, "weight_map": placed}
        storage.write_bytes(
            storage.join(folder, "model.safetensors.index.json"), json.dumps(index, indent=1, sort_keys=True).encode()
        )


def write_config(folder: str, model: Any, model_dir: str, dtype: torch.dtype, chat_template: str | None = None) -> None:
    """Write config, generation config and tokenizer beside the weights. `chat_template` replaces the tokenizer's."""
    from transformers import GenerationConfig

    with tempfile.TemporaryDirectory(prefix="fleetune-export-") as scratch:
        config = type(model.config).from_dict({**model.config.to_dict(), "dtype": str(dtype).removeprefix("torch.")})
        if not reads_padding(model):
            _restore_pad_token(config, model_dir)
        config.architectures = [type(model).__name__]
        tokenizer = tokenizer_to_export(model_dir, chat_template)
        config.save_pretrained(scratch)
        if model.can_generate() and model.generation_config is not None:
            generation = model.generation_config
            if os.path.exists(os.path.join(model_dir, "generation_config.json")) and generation._from_model_config:
                generation = GenerationConfig.from_pretrained(model_dir)  # the model was built without its weights
            end_at(generation, tokenizer.eos_token_id)
            # `save_pretrained` would refuse what many released models have, such as a temperature without sampling.
            generation.to_json_file(os.path.join(scratch, "generation_config.json"))
        # Batches of several texts need a pad token. A head that looks for padding needs that of its configuration.
        if tokenizer.pad_token_id is None or reads_padding(model):
            tokenizer.pad_token_id = model.config.pad_token_id
        tokenizer.save_pretrained(scratch)
        # `put_dir`, because a tokenizer with several chat templates has a folder for them. config.json comes last:
        # nothing takes a directory without it for a model.
        storage.put_dir(scratch, folder, last="config.json")


def end_at(generation: Any, eos: int | None) -> None:
    """Let generation end at the tokenizer's end token too: texts and completions were learned with it."""
    known = generation.eos_token_id
    every = known if isinstance(known, list) else [] if known is None else [known]
    if eos is not None and eos not in every:
        generation.eos_token_id = [eos, *every] if every else eos


def _restore_pad_token(config: Any, model_dir: str) -> None:
    """Give the exported configuration the source's pad token, or none if the source has none.

    PyTorch never trains the embedding of a configured pad token. Some model types, such as Youtu, set it to zero when
    they are loaded.
    """
    from transformers import AutoConfig

    source = AutoConfig.from_pretrained(model_dir, trust_remote_code=False)
    for part, of in ((config, source), (config.get_text_config(), source.get_text_config())):
        if getattr(part, "pad_token_id", None) is not None:
            part.pad_token_id = getattr(of, "pad_token_id", None)


@dataclass(frozen=True)
class Weights:
    """A model's tensors in a fixed order; tied tensors appear once."""

    model: torch.nn.Module

    @property
    def parameters(self) -> list[tuple[str, torch.nn.Parameter]]:
        return list(self.model.named_parameters())

    @property
    def buffers(self) -> list[tuple[str, torch.Tensor]]:
        saved = set(self.model.state_dict().keys())
        return [(name, buffer) for name, buffer in self.model.named_buffers() if name in saved]

    @property
    def sizes(self) -> Shapes:
        return [(name, tensor.numel() * tensor.element_size()) for name, tensor in self.empty.items()]

    @property
    def empty(self) -> dict[str, torch.Tensor]:
        """All tensors on the meta device, with their whole shapes even if they are sharded."""
        return {
            name: torch.empty(getattr(tensor, "ds_shape", tensor.shape), dtype=tensor.dtype, device="meta")
            for name, tensor in [*self.parameters, *self.buffers]
        }

    def gathered(self, names: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield each tensor whole, gathered from all ranks one at a time. Every rank must consume all of them."""
        import deepspeed

        parameters, buffers = dict(self.parameters), dict(self.buffers)
        for name in names:
            if name in buffers:
                yield name, buffers[name]
                continue
            with deepspeed.zero.GatheredParameters([parameters[name]]):
                yield name, parameters[name].data


def export_model(
    engine: Any,
    folder: str,
    model_dir: str,
    rank: int,
    dtype: torch.dtype,
    is_full: bool,
    chat_template: str | None = None,
) -> None:
    """Write the model in training, or only its adapter, to `folder`. Every rank must call it; rank 0 writes."""
    model, weights = engine.module, Weights(engine.module)
    naming = naming_of(model, weights.empty, tensor_names(model_dir)) if is_full else None
    tensors = weights.gathered(trained_names(model) if naming is None else naming.order)
    if rank != 0:
        for _ in tensors:
            pass
    elif naming is None:
        write_adapter(folder, model, tensors, model_dir, chat_template)
    else:
        write_weights(folder, naming.sizes, naming.converted(tensors))
        write_config(folder, model, model_dir, dtype, chat_template)
    wait_for_all()


def check_same_logits(trained: Iterable[torch.Tensor], reloaded: Iterable[torch.Tensor], dtype: torch.dtype) -> float:
    """Compare logits of the model in training with those of the reloaded one, batch by batch.

    Returns:
        The largest difference, as a share of the largest logit.

    Raises:
        RunFailed: they differ by more than rounding explains.
    """
    pairs = [
        (one.float().abs().max(), (one.float() - other.float()).abs().max())
        for one, other in zip(trained, reloaded, strict=True)
    ]
    # Computed with tensors, because Python's max() may ignore NaN.
    largest, furthest = (float(torch.stack(values).max()) for values in zip(*pairs, strict=True))
    difference = furthest / (largest or 1.0)
    allowed = 1e-4 if dtype == torch.float32 else 3e-2
    if not difference <= allowed:
        raise RunFailed(
            f"the exported model does not compute what the trained one does: logits differ by {difference:.2e} of "
            f"their largest value (allowed {allowed:.0e}). The checkpoint is kept, and the export is removed"
        )
    return difference


def verify_export(
    folder: str,
    dtype: torch.dtype,
    size_bytes: int,
    trained: Sequence[torch.Tensor],
    run: Callable[[Any], Sequence[torch.Tensor]],
    load: Callable[[str, bool], Any],
    rank: int,
) -> float:
    """Read the exported directory back and compare logits; if that fails, remove it. Every rank must call it.

    Args:
        trained: logits of the model in training, on fixed batches.
        run: computes the logits of a given model on the same batches.
        load: (folder, sharded) -> a model, sharded over the gang or whole in this process.

    Returns:
        The largest difference, as `check_same_logits` returns it.

    Raises:
        RunFailed: the exported model computes other logits or, in one process, cannot be loaded.
    """
    sharded = size_bytes > ONE_PROCESS_BYTES
    verdict: str | float = math.nan
    try:
        if sharded or rank == 0:
            with on_this_node(folder, wait_for_all if sharded else lambda: None) as local:
                try:
                    verdict = check_same_logits(trained, run(load(local, sharded)), dtype)
                except Exception as error:
                    if sharded:
                        raise
                    verdict = str(error) or type(error).__name__
        verdict = from_rank_0(verdict)
        if isinstance(verdict, str):
            raise RunFailed(verdict)
        return verdict
    except BaseException:
        if rank == 0:
            storage.remove_dir(folder)
        raise


@contextlib.contextmanager
def on_this_node(folder: str, all_read: Callable[[], None]) -> Iterator[str]:
    """Provide a local directory with the exported model. A URL is fetched once for all ranks of this node.

    Args:
        all_read: returns once no rank needs the directory any more.
    """
    if storage.is_local(folder):
        yield storage.local_path(folder)
        return
    name = hashlib.sha256(folder.encode()).hexdigest()[:16]
    cache = os.path.expanduser(f"~/.cache/fleetune/exports/{name}")
    try:
        yield fetched_once(folder, cache, storage.fetch_dir)
        all_read()
    finally:
        shutil.rmtree(cache, ignore_errors=True)
