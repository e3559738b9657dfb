"""How ZeRO-3 shards a model: while transformers loads it or afterwards, and which modules together.

Until a sharded parameter is gathered it has no elements. Some types look at the shapes of parameters when they
initialise or convert weights: every rank would fail, after workers have started. They are loaded whole and sharded
afterwards, for which each rank needs memory for the whole model.
"""

from __future__ import annotations

import inspect
import types
from typing import Any

import torch

from jobs.spec.finetune import Spec
from jobs.training.model.load import empty_model


def loads_in_shards(spec: Spec, model_dir: str) -> bool:
    """The same on all ranks: it depends on the configuration only."""
    return not _looks_at_shapes(empty_model(spec, model_dir))


def gather_data_dependent_modules(model: torch.nn.Module) -> None:
    """Have ZeRO-3 gather the experts of a layer as one, and the indexer of sparse attention.

    Which modules inside are called, and how often, depends on the data: ranks choose different experts, and an indexer
    (Qwen4) calls a norm once for each token that has enough tokens before it. DeepSpeed gathers parameters module by
    module, and expects the same calls on all ranks.
    """
    from deepspeed.utils import set_z3_leaf_module

    for owner in model.modules():
        for name, module in owner.named_children():
            # Experts with parameters further inside may call these by other ways than their own forward (JetMoe).
            inside = any(True for child in module.children() for _ in child.parameters())
            if name == "indexer" or (name == "experts" and not inside):
                set_z3_leaf_module(module, True)


def _looks_at_shapes(model: Any) -> bool:
    """Whether loading needs shapes of whole parameters. Empties the model."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    for conversion in get_model_conversion_mapping(model, add_legacy=False):
        for operation in getattr(conversion, "operations", ()):
            if _names(inspect.unwrap(type(operation).convert).__code__, "get_parameter") and _compares(operation):
                return True
    for parameter in model.parameters():
        parameter.data = torch.empty(0, dtype=parameter.dtype, device=parameter.device)
        parameter._is_hf_initialized = True  # as those that were read
    try:
        with torch.no_grad():
            model.initialize_weights()
    except Exception:  # whatever the type's own code raises
        return True
    return False


def _compares(operation: Any) -> bool:
    """False where an operation that may look at a shape is told not to."""
    return bool(getattr(operation, "check_dims", True))


def _names(code: types.CodeType, name: str) -> bool:
    """Whether a function, or one inside it, names an attribute."""
    inner = (const for const in code.co_consts if isinstance(const, types.CodeType))
    return name in code.co_names or any(_names(one, name) for one in inner)
