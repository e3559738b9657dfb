"""Translates pydantic's validation errors into messages for people who do not know pydantic."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from types import NoneType
from typing import Any, get_args

from pydantic import BaseModel

from cluster.text import did_you_mean
from jobs.spec.checking.fields import ABSENT, SEARCHES, item_model, keys_of, kind_of, spec_fields
from jobs.spec.data import Columns, Source
from jobs.spec.queue import OnEnd
from jobs.spec.space import Range

KEY = "[key]"  # pydantic's last part of a place, if the error is about a key and not about its value
_A_SOURCE = re.compile(r"^data\.(train|eval)(\.\d+)?(\.|$)")
_VARIABLE = "is not a valid variable name: use letters, digits and _, and do not begin with a digit"


def reworded(model: type[BaseModel], name: str, mistake: str, context: Mapping[str, Any], value: Any) -> str:
    """Return the message of one mistake.

    Args:
        model: class of the spec.
        name: dotted name of the field.
        mistake: pydantic's type of the error.
        context: pydantic's facts about the error.
        value: the value that was rejected.
    """
    kind, about = kind_of(model), _about(model, name)
    if mistake == "extra_forbidden":
        is_range = kind in SEARCHES and name.startswith("space.")
        return f"unknown key; a range has {', '.join(Range.model_fields)}" if is_range else _unknown_key(model, name)
    if mistake == "missing":
        needs = [key for key in keys_of(name, model) if spec_fields(model)[f"{name}.{key}"].is_required()]
        return f"is missing. {about}" + (f" It needs {' and '.join(needs)}." if needs else "")
    if mistake == "value_error":
        return str(context["error"])
    if mistake == "literal_error":
        choices = str(context["expected"]).replace("'", "")
        hint = ABSENT.get(str(value)) or did_you_mean(str(value), re.split(r", | or ", choices), "")
        return f"must be {choices}, but is {shown(value, '')}" + (f"; {hint}" if hint else "")
    if mistake == "dict_type" and kind == "command" and name == "env":
        return f"must be variables with their values (NAME: text), but is {shown(value)}"
    if kind in SEARCHES and name in ("space", "prior") and mistake == "dict_type":
        return f"must be fields with their values, as learning_rate: ..., but is {shown(value)}"
    if kind in SEARCHES and name.startswith("space.") and mistake == "model_type":
        return f"must be a list of values, or a range ({{min: 1e-5, max: 1e-3, log: true}}), but is {shown(value)}"
    if mistake in ("model_type", "model_attributes_type", "dict_type"):
        keys = keys_of(name, model) or _model_within(model, f"{name}.").model_fields
        return f"must be a section with the keys {', '.join(keys)}, but is {shown(value)}"
    if mistake == "string_pattern_mismatch":
        if name.endswith(KEY) or name.startswith("queue.secrets"):
            return f"{shown(value, '')} {_VARIABLE}"
        if "\0" in str(value):
            return "contains a zero byte, which cannot be passed to a program"
        return f"{shown(value, '')} does not fit. {about}"
    text = must_be(mistake, context)
    return f"must be {text}, but is {shown(value)}" if text else f"{mistake}: {shown(value)}. {about}"


def must_be(mistake: str, context: Mapping[str, Any]) -> str | None:
    """Describe what is allowed, as it reads after `must be`; None if the mistake has no such description."""
    text = _MUST_BE.get(mistake)
    return None if text is None else text.format(**context)


def _about(model: type[BaseModel], name: str) -> str:
    """Return the description of the field, or of the nearest section around it."""
    fields = spec_fields(model)
    inner = _model_within(model, name).model_fields.get(name.rpartition(".")[2])
    if name not in fields and inner is not None:
        return inner.description or ""
    while name and name not in fields:
        name = name.rpartition(".")[0]
    return (fields[name].description or "") if name else ""


def _model_within(model: type[BaseModel], name: str) -> type[BaseModel]:
    """Return the model of a value that has keys but is not a section: a source, its columns, queue.on_end, a method."""
    if name.startswith("queue.on_end"):
        return OnEnd
    if name.startswith("methods."):
        method, within = item_model(model.model_fields["methods"]), name.split(".")[2:-1]
        found: type[BaseModel] = method.model_fields[within[0]].annotation if within else method  # type: ignore[assignment]
        return next((one for one in get_args(found) if one is not NoneType), found)
    section = name if name.endswith("columns") else name.rpartition(".")[0]
    return Columns if _A_SOURCE.match(name) and section.endswith("columns") else Source


def _unknown_key(model: type[BaseModel], name: str) -> str:
    """Return the message about a key of a value that has keys but is not a section."""
    key, keys = name.rpartition(".")[2], _model_within(model, name).model_fields
    if name.startswith("methods."):
        own = did_you_mean(key, keys) or f"; it has {', '.join(keys)}."
        return f"unknown key{own} Data, training arguments and budget are the same for all methods of a comparison"
    whose = "on_end" if name.startswith("queue.") else "a source"
    return f"unknown key{did_you_mean(key, keys) or f'; {whose} has ' + ', '.join(keys)}"


_MUST_BE = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text (in quotes)",
    "tuple_type": "a list (in square brackets)",
    "too_short": "a list of {min_length} or more",
    "too_long": "a list of {max_length} or fewer",
    "string_too_short": "some text",
    "string_too_long": "text of {max_length} characters or fewer",
    "finite_number": "a finite number",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "less than {lt}",
    "less_than_equal": "{le} or less",
}


def shown(value: Any, kind: str = "the text ") -> str:
    """Format a value for a message; `kind` comes before a text."""
    if value is None:
        return "empty"
    if isinstance(value, str):
        return f'{kind}"{_cut(value)}"' if value.strip() else "empty"
    return _cut(json.dumps(value))


def _cut(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
