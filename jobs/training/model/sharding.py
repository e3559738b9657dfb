"""Decides how ZeRO-3 shards a model: during or after loading, and which modules are gathered together.

A sharded parameter has no elements until it is gathered. Some model types read the shapes of parameters when they
initialise or convert weights, which would fail on every rank. Such models are loaded whole and sharded afterwards, so
each rank needs memory for the whole model.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch

from jobs.spec.finetune import Spec
from jobs.training.model.load import empty_model


def loads_in_shards(spec: Spec, model_dir: str) -> bool:
    """Whether transformers can shard the model while loading it. Equal on all ranks: the configuration decides."""
    return not _looks_at_shapes(empty_model(spec, model_dir))


def sharded_loading(spec: Spec, model_dir: str, config: dict[str, Any]) -> Any:
    """Make transformers shard the weights of a model while it reads them, if it can and ZeRO-3 is on.

    An earlier call has no effect any more.

    Args:
        config: as `deepspeed_config` returns it.

    Returns:
        An object to keep: transformers shards as long as it exists. None: models are loaded whole.
    """
    from transformers.integrations import HfDeepSpeedConfig
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
    return HfDeepSpeedConfig(config) if spec.train.zero.stage == 3 and loads_in_shards(spec, model_dir) else None


def gathered_together(model: torch.nn.Module) -> dict[str, Any]:
    """Return the settings that make ZeRO-3 gather the modules of `data_dependent_modules`, each in one piece.

    Without the empty `classes`, DeepSpeed would gather the router together with the experts in three types of models.
    """
    names = list(data_dependent_modules(model))
    return {"leaf_module": {"classes": [], "names": names}} if names else {}


def free_gathered_experts(model: torch.nn.Module) -> None:
    """Let ZeRO-3 free the parameters of all experts between forward and backward.

    Experts are slices of one parameter. Autograd keeps each slice that a product needs, and with it the memory of the
    whole gathered parameter, after DeepSpeed has released it: without gradient checkpointing, the experts of all layers
    would stay gathered. Instead, the slice is made again in the backward pass, for which DeepSpeed gathers again.
    """
    for name in data_dependent_modules(model):
        if name.rpartition(".")[2] == "experts":
            module = model.get_submodule(name)
            module.forward = functools.partial(_without_kept_slices, module, module.forward)


def _without_kept_slices(module: torch.nn.Module, forward: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
    by_memory: dict[int, list[torch.nn.Parameter]] = {}  # on one worker, several lie in one piece of memory
    for parameter in module.parameters():
        by_memory.setdefault(parameter.untyped_storage().data_ptr(), []).append(parameter)
    by_memory.pop(0, None)
    with torch.autograd.graph.saved_tensors_hooks(functools.partial(_slice_of, by_memory), _tensor_of):
        return forward(*inputs, **named)


class _Slice(NamedTuple):
    """Where a tensor lies in the memory of a parameter."""

    parameter: torch.nn.Parameter
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int  # number of elements after the parameter's first


def _slice_of(by_memory: Mapping[int, list[torch.nn.Parameter]], tensor: torch.Tensor) -> torch.Tensor | _Slice:
    """Return the tensor, or where it lies if it is a part of one of the parameters."""
    for parameter in by_memory.get(tensor.untyped_storage().data_ptr(), ()):
        offset = int(tensor.storage_offset() - parameter.storage_offset())
        if 0 <= offset < parameter.numel() and tensor.dtype == parameter.dtype:
            return _Slice(parameter, tuple(tensor.shape), tensor.stride(), offset)
    return tensor


def _tensor_of(saved: torch.Tensor | _Slice) -> torch.Tensor:
    if isinstance(saved, torch.Tensor):
        return saved
    whole = saved.parameter.detach()
    return whole.as_strided(saved.size, saved.stride, whole.storage_offset() + saved.offset)


def data_dependent_modules(model: torch.nn.Module) -> Iterator[str]:
    """Yield the names of the modules that are gathered in one piece: the experts of a layer, and an indexer.

    The data decides which modules inside are called, and how often: ranks choose different experts, and an indexer of
    sparse attention (Qwen4) calls a norm once for each token that has enough tokens before it. DeepSpeed gathers
    parameters module by module, and expects the same calls on all ranks. It looks at no module inside these.
    """
    for name, module in model.named_modules():
        kind = name.rpartition(".")[2]
        # Experts with nested parameters may call these without calling the modules' own forward (JetMoe).
        inside = any(True for child in module.children() for _ in child.parameters())
        if kind == "indexer" or (kind == "experts" and not inside):
            yield name


def _looks_at_shapes(model: Any) -> bool:
    """Whether loading reads the shapes of whole parameters. Empties the model."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    for conversion in get_model_conversion_mapping(model, add_legacy=False):
        for operation in getattr(conversion, "operations", ()):
            compares = getattr(operation, "check_dims", True)  # some operations can skip the comparison of shapes
            if compares and _refers_to(inspect.unwrap(type(operation).convert).__code__, "get_parameter"):
                return True
    for parameter in model.parameters():
        parameter.data = torch.empty(0, dtype=parameter.dtype, device=parameter.device)
        parameter._is_hf_initialized = True  # as for parameters that were read
    try:
        with torch.no_grad():
            model.initialize_weights()
    except Exception:  # the model type's code may raise anything
        return True
    return False


def _refers_to(code: types.CodeType, name: str) -> bool:
    """Whether a function, or a function inside it, refers to an attribute of this name."""
    inner = (const for const in code.co_consts if isinstance(const, types.CodeType))
    return name in code.co_names or any(_refers_to(one, name) for one in inner)
