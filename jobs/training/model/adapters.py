"""Adds PEFT's adapters to a frozen model, and writes an adapter as a directory.

For the rest of this package, it is a model of which some parameters are not trained. `peft` is imported in functions
only, because full fine-tuning does not need it.
"""

from __future__ import annotations

import contextlib
import copy
import os
import re
import tempfile
import warnings
from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING, Any, cast

import torch

from cluster.errors import DataError, SpecError
from jobs.model_files.tokenizer import tokenizer_to_export
from jobs.planning.precision import Precision
from jobs.spec.finetune import Spec
from jobs.spec.method import ALL_LINEAR
from jobs.storage import files as storage
from jobs.training.model.load import DTYPES, load_base, unread_by_text
from jobs.training.model.pooling import reads_padding, reads_the_end

if TYPE_CHECKING:
    from peft import PeftConfig

_TASKS = {"causal-lm": "CAUSAL_LM", "sequence-classification": "SEQ_CLS"}
_OWN_COPY = ".modules_to_save.default."  # in the name of a parameter of a module that is trained fully
_ADAPTER_NAME = re.compile(r"\.(lora_[AB])\.default\.")
_WEIGHTS = "adapter_model.safetensors"
_MOST_NAMES = 20  # of modules, in a message


def load_model(spec: Spec, model_dir: str, precision: Precision, pad_token_id: int) -> torch.nn.Module:
    """Load the model with the adapter of the spec's method, if any, ready for `deepspeed.initialize`.

    While a `HfDeepSpeedConfig` of stage 3 exists, transformers shards every weight as it reads it. New weights (of a
    classification head) are drawn from the spec's seed on rank 0 and broadcast.
    """
    model, missing = load_base(spec, model_dir, precision, pad_token_id)
    if spec.method.kind == "full":
        return model
    return cast(torch.nn.Module, adapted(spec, model, model_dir, new_modules(missing)).train())


def adapted(spec: Spec, model: Any, model_dir: str, new: Collection[str] = ()) -> Any:
    """Freeze the model and add the adapter of the spec's method; return the model, or PEFT's model around it.

    New weights are drawn from the spec's seed in the same order on every rank, whether or not the model is sharded.

    Args:
        model: may be on torch's meta device.
        model_dir: its directory, whose tokenizer reads prompt.init_text.
        new: modules with weights that the directory lacks, beside the head. They are trained fully.

    Raises:
        SpecError: lora.target_modules match nothing.
        DataError: PEFT cannot tune a prompt for a model of this type, or a new module has a tied parameter.
    """
    import peft

    full = outermost({*head_modules(spec, model), *new})
    _check_not_tied(spec, model, full)
    first = next(model.parameters())
    # PEFT would draw real weights for a model without data: seconds and gigabytes for many layers.
    place = first.device if first.device.type == "meta" else contextlib.nullcontext()
    torch.manual_seed(spec.seed % 2**63)
    with _without_warnings_for_others(), place:
        if spec.method.kind == "lora":
            model = peft.inject_adapter_in_model(_lora_config(spec, model, full), model)
        else:
            _check_takes_prompt(spec, model)
            config = _prompt_config(spec, model, model_dir, full)
            model = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
    for parameter in model.parameters():
        if parameter.requires_grad:  # DeepSpeed has one dtype for all, and keeps the fp32 copies
            parameter.data = parameter.data.to(first.dtype)
    return model


@contextlib.contextmanager
def _without_warnings_for_others() -> Iterator[None]:
    """Ignore warnings that are for PEFT's developers, and one about GPT-2's linear modules, which PEFT corrects."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to")
        yield


def head_modules(spec: Spec, model: Any) -> list[str]:
    """Return the names of a classifier's modules outside of its base model; empty for a language model."""
    if spec.model.task != "sequence-classification":
        return []
    return [
        name
        for name, module in model.named_children()
        if module is not model.base_model and any(True for _ in module.parameters())
    ]


def new_modules(missing: Iterable[str]) -> set[str]:
    """Return the modules of the parameters that a model's directory lacks."""
    return {name.rpartition(".")[0] for name in missing} - {""}


def outermost(modules: Collection[str]) -> list[str]:
    """Return the modules that are not inside another one of them, sorted. Pure."""
    return sorted(one for one in modules if not any(one.startswith(f"{other}.") for other in modules))


def _check_not_tied(spec: Spec, model: Any, full: list[str]) -> None:
    """Reject a module that would be trained as a copy, but shares a parameter: the copy and the export lose the tie."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    tied = [name for same in names.values() if len(same) > 1 for name in same]
    for module in full:
        shared = next((name for name in tied if name.startswith(f"{module}.")), None)
        if shared is not None:
            raise DataError(
                f"model.path {spec.model.path}: weights of {module} are missing, and method: {spec.method.kind} cannot "
                f"train them, because {shared} is tied to another parameter. Use method: full, or a model that was "
                f"saved with {module}"
            )


def own_copies(trained: Iterable[str]) -> set[str]:
    """Return the modules that are trained fully, from the names of the trained parameters."""
    return {name.partition(_OWN_COPY)[0].removeprefix("base_model.") for name in trained if _OWN_COPY in name}


def targets_of(wanted: Collection[str], linear: Collection[str]) -> list[str]:
    """Choose the modules that get an adapter: those whose name is, or ends with, a wanted one. Pure.

    Args:
        linear: names of the model's linear modules that are not trained fully.

    Raises:
        SpecError: a wanted name matches no linear module.
    """
    named = [name for name in wanted if name != ALL_LINEAR]
    strangers = [name for name in named if not any(_ends_with(one, name) for one in linear)]
    if strangers:
        ends = list(dict.fromkeys(re.sub(r"^.*\.", "", one) for one in linear))
        more = f" and {len(ends) - _MOST_NAMES} more" if len(ends) > _MOST_NAMES else ""
        shown = ", ".join(ends[:_MOST_NAMES]) + more
        raise SpecError.at(
            "lora.target_modules",
            f"the model has no linear module {', '.join(strangers)}: it has {shown or 'none'}. "
            f"Name some of them, or leave it out ({ALL_LINEAR})",
        )
    if ALL_LINEAR in wanted:
        return list(linear)
    return [one for one in linear if any(_ends_with(one, name) for name in wanted)]


def _ends_with(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")


def _linear_modules(model: Any, full: Collection[str]) -> list[str]:
    """Return the names of the linear modules, except the output layer and those inside of modules in `full`."""
    from transformers.pytorch_utils import Conv1D

    output, unread = model.get_output_embeddings(), unread_by_text(model)
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D)
        and not type(module).__name__.endswith("Router")  # those of Llama 4 and PhiMoE return more than the product
        and module is not output
        and not name.startswith(unread)
        and not any(f"{name}.".startswith(f"{one}.") for one in full)
    ]


def _smaller_side(module: Any) -> int:
    """Return the smaller side of a linear module's matrix, of which a worker may hold only a part."""
    if isinstance(module, torch.nn.Linear):
        return min(module.in_features, module.out_features)
    return int(min(module.nx, module.nf))  # Conv1D of transformers


def _takes_lora(model: Any, name: str) -> bool:
    """Whether an adapter of the module has an effect: Mamba's kernels read the weights of some modules themselves."""
    from peft import LoraConfig
    from peft.tuners.tuners_utils import _check_lora_target_modules_mamba

    last = name.rpartition(".")[2]
    if last == "dt_proj":  # in all types of transformers that have it; PEFT knows of the others
        return False
    try:
        _check_lora_target_modules_mamba(LoraConfig(), model, last)
    except ValueError:
        return False
    return True


def _lora_config(spec: Spec, model: Any, full: list[str]) -> PeftConfig:
    from peft import LoraConfig

    linear, wanted = _linear_modules(model, full), spec.lora.target_modules
    targets = targets_of(wanted, [name for name in linear if ALL_LINEAR not in wanted or _takes_lora(model, name)])
    if not targets:
        raise SpecError.at("method", f"{type(model).__name__} has no linear module that could get a LoRA adapter")
    modules = dict(model.named_modules())
    widest = max(_smaller_side(modules[name]) for name in targets)
    if spec.lora.rank > widest:
        raise SpecError.at(
            "lora.rank",
            f"{spec.lora.rank} is more than the smaller side of every adapted matrix ({widest}), so the adapter would "
            "be larger than the matrices: use method: full, or a smaller rank",
        )
    return LoraConfig(
        task_type=_TASKS[spec.model.task],
        base_model_name_or_path=spec.model.path,
        r=spec.lora.rank,
        lora_alpha=spec.lora.alpha,
        lora_dropout=spec.lora.dropout,
        target_modules=targets,
        modules_to_save=full or None,
    )


def _prompt_config(spec: Spec, model: Any, model_dir: str, full: list[str]) -> PeftConfig:
    from peft import PromptTuningConfig

    text, sizes = spec.prompt.init_text, model.config.get_text_config()
    return PromptTuningConfig(
        task_type=_TASKS[spec.model.task],
        base_model_name_or_path=spec.model.path,
        num_virtual_tokens=spec.prompt.num_virtual_tokens,
        # PEFT wants all three, and does not find them in every configuration.
        token_dim=model.get_input_embeddings().embedding_dim,
        num_layers=getattr(sizes, "num_hidden_layers", 1),
        num_attention_heads=getattr(sizes, "num_attention_heads", 1),
        prompt_tuning_init="SAMPLE_VOCAB" if text is None else "TEXT",
        prompt_tuning_init_text=text,
        tokenizer_name_or_path=None if text is None else model_dir,
        modules_to_save=full or None,
    )


def _check_takes_prompt(spec: Spec, model: Any) -> None:
    """Reject heads that look for the last token of a row: behind embeddings of a prompt they cannot see padding."""
    if spec.model.task == "sequence-classification" and (reads_padding(model) or reads_the_end(model)):
        raise DataError(
            f"method: prompt cannot train {type(model).__name__}: its head looks for the last token of a text, and "
            "PEFT gives it embeddings instead of tokens. Use method: lora"
        )


def base_of(model: Any) -> tuple[Any, int]:
    """Return the model of transformers, and the number of virtual tokens that PEFT puts before each row."""
    config = getattr(model, "active_peft_config", None)
    if config is None:
        return model, 0
    return model.get_base_model(), config.num_virtual_tokens if config.is_prompt_learning else 0


def with_adapter_of(model: Any, folder: str, *, in_fp32: bool) -> Any:
    """Return PEFT's model: an exported adapter around the model that it was trained with.

    Args:
        in_fp32: compute a bf16 or fp16 adapter in fp32, as PEFT does by default. In training it is not, and the logits
            differ by a few percent.
    """
    import peft

    with _without_warnings_for_others():
        return peft.PeftModel.from_pretrained(model, folder, torch_device="cpu", autocast_adapter_dtype=in_fp32)


def precision_of_adapter(folder: str) -> Precision:
    """Return the precision of an exported adapter in a local directory."""
    from safetensors import safe_open

    with safe_open(os.path.join(folder, _WEIGHTS), "pt") as file:
        dtype = file.get_tensor(next(iter(file.keys()))).dtype
    return next(name for name, one in DTYPES.items() if one == dtype)


def trained_names(model: Any) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def write_adapter(
    folder: str,
    model: Any,
    tensors: Iterable[tuple[str, torch.Tensor]],
    model_dir: str,
    chat_template: str | None = None,
) -> None:
    """Write an adapter as `peft.PeftModel.from_pretrained` reads it, with the tokenizer beside it.

    Args:
        folder: local path or URL.
        model: as `adapted` returns it.
        tensors: (name in the model, tensor on any device) of all trained parameters.
    """
    from safetensors.torch import save_file

    config = copy.copy(model.peft_config["default"])
    prefix = "" if config.is_prompt_learning else "base_model.model."
    held = {prefix + _file_name(name): tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors}
    config.inference_mode = True
    if config.is_prompt_learning:
        config.tokenizer_name_or_path = config.base_model_name_or_path
    else:
        config.target_modules = sorted(config.target_modules)
    with tempfile.TemporaryDirectory(prefix="fleetune-export-") as scratch:
        save_file(held, os.path.join(scratch, _WEIGHTS), metadata={"format": "pt"})
        config.save_pretrained(scratch)
        tokenizer_to_export(model_dir, chat_template).save_pretrained(scratch)
        storage.put_dir(scratch, folder)  # a tokenizer with several chat templates has a folder of its own


def _file_name(name: str) -> str:
    """Return the name of a parameter in the file, before PEFT's prefix."""
    if name.startswith("prompt_encoder."):
        return "prompt_embeddings"
    return _ADAPTER_NAME.sub(r".\1.", name.replace(_OWN_COPY, "."))
