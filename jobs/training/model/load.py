"""Loads a model so that it is sharded while it is read, and groups its parameters for the optimizer."""

from __future__ import annotations

import functools
import math
import random
import re
from typing import Any
from unittest import mock

import numpy as np
import torch

from jobs.model_files.directory import tensor_shapes
from jobs.planning.precision import Precision
from jobs.spec.finetune import Spec
from jobs.training.model.checkpointing import checkpoint_activations

# Settings under which a model sees tokens after the current one, and the values that prevent this.
_DIRECTIONS: dict[str, tuple[Any, Any]] = {
    "is_decoder": (False, True),
    "causal": (False, True),
    "attn_type": ("bi", "uni"),
}
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_base(spec: Spec, model_dir: str, precision: Precision, pad_token_id: int) -> tuple[torch.nn.Module, set[str]]:
    """Load the model without an adapter. Returns it, and the names of the parameters that its directory lacks."""
    _seed_all(spec.seed % 2**32)
    model, loading = model_class(spec).from_pretrained(
        model_dir,
        config=model_config(spec, model_dir),
        dtype=DTYPES[precision],
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
        **attention_arguments(spec),
    )
    set_pad_token(model.config, pad_token_id)
    if spec.train.gradient_checkpointing:
        checkpoint_activations(model)
    model.train()
    return model, {name for name, _ in model.named_parameters()} & set(loading["missing_keys"])


def _seed_all(seed: int) -> None:
    """Seed every generator from which a model type may draw new weights.

    `transformers.set_seed` does the same, but its module imports peft if that is installed, which takes a second.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def empty_model(spec: Spec, model_dir: str, dtype: torch.dtype = torch.float32, config: Any = None) -> Any:
    """Build the model on torch's meta device, without flash attention: tensors have shapes and take no memory.

    Args:
        config: in place of the one in the directory.
    """
    config = model_config(spec, model_dir) if config is None else config
    with torch.device("meta"):
        return model_class(spec).from_config(config, dtype=dtype, **attention_arguments(without_flash_attention(spec)))


def lacking_and_unused(spec: Spec, model_dir: str) -> tuple[set[str], set[str]]:
    """Return the parameters that the directory lacks, and the weights in it that the model has no place for.

    The headers of the weights tell it. Both sets are empty if the directory has no weights.
    """
    held = {name: torch.empty(shape, device="meta") for name, shape in tensor_shapes(model_dir).items()}
    if not held:
        return set(), set()
    empty = empty_model(spec, model_dir)  # for a model of several parts, its configuration is that of the text part
    # A user's terminal needs neither a progress bar nor a report about weights that are missing.
    bar = mock.patch("transformers.core_model_loading.tqdm", lambda items, **_: items)
    with bar, mock.patch("transformers.modeling_utils.log_state_dict_report"):
        model, loading = type(empty).from_pretrained(
            None, config=empty.config, state_dict=held, device_map="meta", output_loading_info=True
        )
    missing = {name for name, _ in model.named_parameters()} & set(loading["missing_keys"])
    return missing, set(loading["unexpected_keys"])


def converts_weights(model: Any) -> bool:
    """Whether transformers changes names or shapes of this model's weights while it reads them."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    return bool(get_model_conversion_mapping(model, add_legacy=False))


def model_config(spec: Spec, model_dir: str) -> Any:
    """Return the model's configuration for the task.

    Types such as BERT, XLM and XLNet are bidirectional unless their configuration says otherwise. As language models
    they would then see the tokens that they have to predict.
    """
    import transformers

    config = transformers.AutoConfig.from_pretrained(model_dir, trust_remote_code=False, **label_arguments(spec))
    if spec.model.task == "causal-lm":
        for name, (both_ways, one_way) in _DIRECTIONS.items():
            if getattr(config, name, None) == both_ways:
                setattr(config, name, one_way)
    return config


def attention_arguments(spec: Spec) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` about the attention kernel; if empty, transformers chooses."""
    kernel = spec.model.attn_implementation
    return {} if kernel is None else {"attn_implementation": kernel}


def without_flash_attention(spec: Spec) -> Spec:
    """Return the spec without flash attention, whose package may be missing outside of GPU nodes."""
    if spec.model.attn_implementation != "flash_attention_2":
        return spec
    return spec.with_value("model.attn_implementation", None)


def in_one_dtype(model: Any, precision: Precision) -> Any:
    """Give all weights of a model the dtype in which DeepSpeed trains them, and return the model.

    transformers keeps weights in fp32 that a model type creates in fp32, such as DeBERTa's query biases. A forward pass
    with weights of two dtypes fails.
    """
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(DTYPES[precision])
    return model


def set_pad_token(config: Any, pad_token_id: int) -> int:
    """Set the pad token if the configuration names none, or one outside of the vocabulary.

    Returns:
        The pad token of this model. A classification head may mistake any other token for the end of the text.
    """
    text = config.get_text_config()
    for part in (config, text):
        named = getattr(part, "pad_token_id", None)
        if named is None or not 0 <= named < getattr(text, "vocab_size", math.inf):
            part.pad_token_id = pad_token_id
    return int(text.pad_token_id)


@functools.cache
def import_model_classes() -> dict[str, Any]:
    """Import and return the transformers classes by task."""
    import transformers

    # Every model imports all losses, and those of object detection import SciPy if they find it: half a second of a
    # core in every worker. No task of a job uses them.
    with mock.patch("transformers.utils.is_scipy_available", return_value=False):
        import transformers.loss.loss_utils
    return {
        "causal-lm": transformers.AutoModelForCausalLM,
        "sequence-classification": transformers.AutoModelForSequenceClassification,
    }


def model_class(spec: Spec) -> Any:
    """Return the transformers class for the task."""
    return import_model_classes()[spec.model.task]


def label_arguments(spec: Spec) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` about the classes."""
    if spec.num_labels is None:
        return {}
    # Otherwise the export of a multi-label base would still be used with several labels for each text.
    found: dict[str, Any] = {"num_labels": spec.num_labels, "problem_type": "single_label_classification"}
    if spec.data.labels is None:
        return found
    names = dict(enumerate(spec.data.labels))
    return found | {"id2label": names, "label2id": {name: number for number, name in names.items()}}


# Names of biases and norms as transformers' Trainer tells them; some have two dimensions.
_NORM_OR_BIAS = re.compile(r"bias|layernorm|rmsnorm|(^|[._])norm($|\.)")


def decays(name: str, shape: tuple[int, ...], unread: tuple[str, ...] = ()) -> bool:
    """Whether weight decay applies to a parameter: not to norms, biases and what text does not pass through. Pure.

    Args:
        unread: as `unread_by_text` returns it.
    """
    return len(shape) >= 2 and not _NORM_OR_BIAS.search(name.lower()) and not name.startswith(unread)


def unread_by_text(model: Any) -> tuple[str, ...]:
    """Return the beginnings of names of the parameters that text does not pass through, as those for images.

    In such models of transformers, they stand beside a `language_model`. They get no gradients.
    """
    base = getattr(model, "base_model", model)
    if base is model or not isinstance(getattr(base, "language_model", None), torch.nn.Module):
        return ()
    name = next(name for name, module in model.named_modules() if module is base)
    return tuple(f"{name}.{child}." for child, _ in base.named_children() if child != "language_model")


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Make the optimizer's two groups: parameters that decay (`decays`), and those that do not.

    A sharded parameter is flat; DeepSpeed keeps its real shape in `ds_shape`.
    """
    groups: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
    unread = unread_by_text(model)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[decays(name, tuple(getattr(parameter, "ds_shape", parameter.shape)), unread)].append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay if decaying else 0.0, "decays": decaying}
        for decaying, parameters in groups.items()
        if parameters
    ]
