"""Runs one forward pass of the model without weights before workers start, to find errors of transformers early."""

from __future__ import annotations

from typing import Any

import torch

from jobs.data.prepared import ROW_SCHEMA
from jobs.errors import DataError
from jobs.model_files.tokenizer import load_tokenizer, pad_token_id
from jobs.spec.finetune import Spec
from jobs.training.model.batch import collate, model_logits
from jobs.training.model.load import empty_model, model_class, set_pad_token
from jobs.training.model.pooling import reads_the_end

# Errors that tell something about the model. RuntimeError and NotImplementedError only show that tensors have no data.
_TELLING = (ValueError, TypeError, AttributeError, KeyError, IndexError, AssertionError, ImportError)
_MOST_CHARACTERS = 300


def check_model_runs(spec: Spec, model_dir: str) -> None:
    """Build the model from its configuration on torch's meta device, and run one row through it.

    Raises:
        DataError: transformers cannot build the model or rejects a row of text, or the tokenizer does not write the
            end-of-text token that the model's head needs.
    """
    try:
        model = empty_model(spec, model_dir)
    except Exception as error:  # configurations and model classes may raise anything
        raise DataError(
            f"model.path {model_dir}: transformers cannot build this model: {_reason(error)}. Correct config.json, "
            "install what it needs, or choose another model"
        ) from error
    if type(model.config) not in model_class(spec)._model_mapping:
        raise DataError(
            f"model.path {model_dir}: {type(model).__name__} keeps only a part of this configuration, so its export "
            "could not be loaded again. Choose a text model"
        )
    tokenizer = load_tokenizer(model_dir)
    _check_end(spec, model, tokenizer, model_dir)
    try:
        pad = set_pad_token(model.config, pad_token_id(tokenizer))
        with torch.no_grad():
            batch = collate(ROW_SCHEMA.empty_table(), spec.model.task, pad, torch.device("meta"))
            model_logits(model.train(), batch, spec.model.task)
    except _TELLING as error:
        raise DataError(
            f"model.path {model_dir}: {type(model).__name__} cannot be trained on rows of text: {_reason(error)}. "
            "Correct config.json, or choose another model"
        ) from error
    except (RuntimeError, NotImplementedError):
        pass


def _check_end(spec: Spec, model: Any, tokenizer: Any, model_dir: str) -> None:
    if spec.model.task == "causal-lm" or not reads_the_end(model):
        return
    end = model.config.eos_token_id
    if end is None:
        raise DataError(f"model.path {model_dir}: {type(model).__name__} needs eos_token_id in config.json: add it")
    if end not in tokenizer("a")["input_ids"]:
        raise DataError(
            f"model.path {model_dir}: {type(model).__name__} reads the state at the end-of-text token {end}, but the "
            "tokenizer does not write this token. Take the tokenizer that was released with the model"
        )


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or "no reason given"
    return f"{type(error).__name__}: {text[:_MOST_CHARACTERS]}".rstrip(". ")
