"""Runs one forward pass of the model without weights before workers start, to find errors of transformers early."""

from __future__ import annotations

import re
from typing import Any
from unittest import mock

import torch

from cluster.errors import DataError, InputError
from jobs.data.prepared import ROW_SCHEMA
from jobs.model_files.directory import tensor_shapes
from jobs.model_files.tokenizer import load_tokenizer, pad_token_id
from jobs.preflight.traced_pass import without_advice, without_decisions_from_data
from jobs.spec.finetune import Spec
from jobs.training.model.adapters import adapted, new_modules
from jobs.training.model.batch import collate, model_logits
from jobs.training.model.load import (
    converts_weights,
    empty_model,
    lacking_and_unused,
    model_class,
    set_pad_token,
)
from jobs.training.model.pooling import reads_the_end

# Errors that are about the model. Most errors of torch (RuntimeError, NotImplementedError) only show that tensors have
# no data; those about shapes are about the model too.
_TELLING = (ValueError, TypeError, AttributeError, KeyError, IndexError, AssertionError, ImportError)
_SHAPES_DIFFER = (
    "must match the size of tensor",
    "shapes cannot be multiplied",
    "is invalid for input of size",
    "Attempting to broadcast a dimension",
)
_MOST_CHARACTERS = 300
_NUMBER = re.compile(r"\d+")


@without_advice()
def check_model_runs(spec: Spec, model_dir: str) -> None:
    """Build the model from its configuration on torch's meta device, and run one row through it.

    Raises:
        SpecError: the spec's method does not fit the model.
        DataError: transformers cannot build the model or rejects a row of text, the weights have other shapes or lack
            what the method needs, or the tokenizer does not write the end-of-text token that the model's head needs.
    """
    model = built_empty(spec, model_dir)
    if type(model.config) not in model_class(spec)._model_mapping:
        raise DataError(
            f"model.path {model_dir}: {type(model).__name__} keeps only a part of this configuration, so its export "
            "could not be loaded again. Choose a text model"
        )
    _check_shapes(model, model_dir)
    missing = _check_layers(spec, model, model_dir)
    _check_head(spec, model, model_dir, missing)
    tokenizer = load_tokenizer(model_dir)
    _check_end(spec, model, tokenizer, model_dir)
    if spec.method.kind != "full":
        model = _adapted(spec, model, model_dir, missing)
    try:
        pad = set_pad_token(model.config, pad_token_id(tokenizer))
        never = mock.MagicMock(return_value=False)  # transformers looks into a mask to see whether it is needed
        masking = mock.patch.multiple(
            "transformers.masking_utils", _ignore_causal_mask_sdpa=never, _ignore_bidirectional_mask_sdpa=never
        )
        with torch.no_grad(), without_decisions_from_data(), masking:
            batch = collate(ROW_SCHEMA.empty_table(), spec.model.task, pad, torch.device("meta"))
            model_logits(model.train(), batch, spec.model.task)
    except _TELLING as error:
        raise DataError(
            f"model.path {model_dir}: {type(model).__name__} cannot be trained on rows of text: {_reason(error)}. "
            "Correct config.json, or choose another model"
        ) from error
    except (RuntimeError, NotImplementedError) as error:
        if any(said in str(error) for said in _SHAPES_DIFFER):
            raise DataError(
                f"model.path {model_dir}: sizes in {type(model).__name__} do not fit each other: {_reason(error)}. "
                "Correct config.json, or choose another model"
            ) from error


def built_empty(spec: Spec, model_dir: str) -> Any:
    """Return `empty_model`. Raises DataError if transformers cannot build it."""
    try:
        return empty_model(spec, model_dir)
    except Exception as error:  # configurations and model classes may raise anything
        raise DataError(
            f"model.path {spec.model.path}: transformers cannot build this model: {_reason(error)}. Correct "
            "config.json, install what it needs, or choose another model"
        ) from error


def _check_shapes(model: Any, model_dir: str) -> None:
    """Compare the weights with the configuration. Weights that transformers converts on reading are skipped."""
    if converts_weights(model):
        return
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    prefix = f"{model.base_model_prefix}."
    for name, shape in tensor_shapes(model_dir).items():
        expected = wanted.get(name, wanted.get(prefix + name))
        if expected is not None and expected != shape:
            raise DataError(
                f"model.path {model_dir}: {name} is {_by(shape)} in the weights, but {_by(expected)} according to "
                "config.json. Use the config.json that was released with these weights"
            )


def _check_layers(spec: Spec, model: Any, model_dir: str) -> set[str]:
    """Check that the weights have as many layers (and experts, and so on) as the configuration.

    A head may be new, and the weights may have one that is not used. Any other parameter that is on one side only, and
    whose name differs only in a number from one on both sides, is a layer that would be dropped or begin at random.

    Returns:
        The parameters that the weights lack.
    """
    missing, unused = lacking_and_unused(spec, model_dir)
    wanted = {name for name, _ in model.named_parameters()}
    in_both = {_NUMBER.sub("#", name) for name in wanted - missing}
    prefix = f"{model.base_model_prefix}."
    in_both |= {name.removeprefix(prefix) for name in in_both}
    for names, said in (
        (missing, "is in the model, and not in the weights"),
        (unused, "is in the weights, and not in the model"),
    ):
        numbered = sorted(name for name in names if "#" in (form := _NUMBER.sub("#", name)) and form in in_both)
        if numbered:
            raise DataError(
                f"model.path {model_dir}: config.json and the weights differ in their numbers of layers: {numbered[0]} "
                f"{said}. Use the config.json that was released with these weights"
            )
    layers = getattr(model.config.get_text_config(), "num_hidden_layers", 1)
    if isinstance(layers, int) and layers < 1:
        raise DataError(f"model.path {model_dir}: num_hidden_layers is {layers} in config.json: it must be at least 1")
    return missing


def _check_head(spec: Spec, model: Any, model_dir: str, missing: set[str]) -> None:
    """Refuse a language model whose weights lack the output matrix: it would begin with random guesses.

    A tied output matrix is never missing, because it is the embedding. A classification head is new in most runs.
    """
    output = model.get_output_embeddings() if spec.model.task == "causal-lm" else None
    weight = getattr(output, "weight", None)
    head = [name for name, parameter in model.named_parameters() if parameter is weight and name in missing]
    if head:
        raise DataError(
            f"model.path {model_dir}: the weights have no {head[0]}, so the model would begin with a random head. They "
            "may have been saved without it, by AutoModel. Choose a model that was saved by AutoModelForCausalLM"
        )


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a number"


def _adapted(spec: Spec, model: Any, model_dir: str, missing: set[str]) -> Any:
    """Add what the method trains; `missing`: parameters that the weights lack. Raises InputError."""
    try:
        return adapted(spec, model, model_dir, new_modules(missing))
    except InputError:
        raise
    except Exception as error:  # PEFT may raise anything
        raise DataError(
            f"method: {spec.method.kind} cannot train {type(model).__name__}: {_reason(error)}. Use method: full"
        ) from error


def _check_end(spec: Spec, model: Any, tokenizer: Any, model_dir: str) -> None:
    if spec.model.task == "causal-lm" or not reads_the_end(model):
        return
    end = model.config.eos_token_id
    if end is None:
        raise DataError(f"model.path {model_dir}: {type(model).__name__} needs eos_token_id in config.json: add it")
    if end not in tokenizer("a")["input_ids"]:
        raise DataError(
            f"model.path {model_dir}: {type(model).__name__} reads the state at the end-of-text token {end}, but the "
            "tokenizer does not write this token. Use the tokenizer that was released with the model"
        )


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or "no reason given"
    return f"{type(error).__name__}: {text[:_MOST_CHARACTERS]}".rstrip(". ")
