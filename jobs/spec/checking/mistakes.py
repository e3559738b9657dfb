"""Translates pydantic's validation errors into messages for people who do not know pydantic."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from cluster.text import did_you_mean
from jobs.spec.checking.fields import ABSENT, SEARCHES, keys_of, kind_of, model_at, spec_fields
from jobs.spec.data import Source
from jobs.spec.space import Range

KEY = "[key]"  # pydantic's last part of a place, if the error is about a key and not about its value
_VARIABLE = "is not a valid variable name: use letters, digits and _, and do not begin with a digit"
_LABEL = "is not a valid label: use up to 100 letters, digits and . _ / -, and begin with a letter or digit"


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
        inner = model_at(model, name.split("."))
        if inner is None:
            return f"must be names with their values (NAME: text), but is {shown(value)}"
        keys = keys_of(name, model) or inner.model_fields
        return f"must be a section with the keys {', '.join(keys)}, but is {shown(value)}"
    if mistake == "string_pattern_mismatch":
        return _pattern_message(name, value) or f"{shown(value, '')} does not fit. {about}"
    text = must_be(mistake, context)
    return f"must be {text}, but is {shown(value)}" if text else f"{mistake}: {shown(value)}. {about}"


def must_be(mistake: str, context: Mapping[str, Any]) -> str | None:
    """Describe what is allowed, as it reads after `must be`; None if the mistake has no such description."""
    text = _MUST_BE.get(mistake)
    return None if text is None else text.format(**context)


def _about(model: type[BaseModel], name: str) -> str:
    """Return the description of the field, or of the nearest section around it."""
    parts = name.split(".") if name else []
    for length in range(len(parts), 0, -1):
        around = model_at(model, parts[: length - 1])
        if around is not None and (info := around.model_fields.get(parts[length - 1])) is not None:
            return info.description or ""
    return ""


def _unknown_key(model: type[BaseModel], name: str) -> str:
    """Return the message about a key of a value that has keys but is not a section: a source, a method, `on_end`."""
    *around, key = name.split(".")
    found = model_at(model, around)
    keys = found.model_fields if found is not None else {}
    if around[0] == "methods":
        own = did_you_mean(key, keys) or f"; it has {', '.join(keys)}."
        return f"unknown key{own} Data, training arguments and budget are the same for all methods of a comparison"
    whose = "a source" if found is Source else next(part for part in reversed(around) if not part.isdecimal())
    return f"unknown key{did_you_mean(key, keys) or f'; {whose} has ' + ', '.join(keys)}"


def _pattern_message(name: str, value: Any) -> str | None:
    """Return the message about a name or a word that has a wrong character; None if the field explains itself."""
    if name.endswith(KEY) and name.removeprefix("base.").startswith("queue.labels."):
        return f"{shown(value, '')} {_LABEL}"
    if name.endswith(KEY) or name.removeprefix("base.").startswith("queue.secrets."):
        return f"{shown(value, '')} {_VARIABLE}"
    return "contains a zero byte, which cannot be passed to a program" if "\0" in str(value) else None


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
