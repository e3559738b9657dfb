"""Gives the tensors of an export the names that the model's source directory uses, not those inside transformers.

transformers renames and fuses weights of some types when it loads them; for example, the experts of a layer become one
tensor. `save_pretrained` reverts that for the whole model at once. This module reverts it for a few tensors at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch

Tensors = dict[str, torch.Tensor]
_LAYER = re.compile(r"(.*?\.\d+)\.")


@dataclass(frozen=True)
class Group:
    """Tensors of the model that are converted together to tensors of the file."""

    names: tuple[str, ...]  # names in the model; for a tied tensor, the name that the source uses, if any
    sizes: tuple[tuple[str, int], ...]  # names in the file, with bytes


@dataclass(frozen=True)
class Naming:
    """The names that a model's tensors have in a file."""

    model: Any
    conversions: list[Any]  # conversions of transformers, in the order in which loading applies them
    groups: tuple[Group, ...]
    first: Mapping[str, str]  # for a tied tensor: its name in `groups` -> the name that the model lists first

    @property
    def order(self) -> list[str]:
        """The model's names, in the order in which `converted` consumes their tensors."""
        return [self.first.get(name, name) for group in self.groups for name in group.names]

    @property
    def sizes(self) -> list[tuple[str, int]]:
        """The file's names, in the order in which `converted` yields them."""
        return [size for group in self.groups for size in group.sizes]

    def converted(self, tensors: Iterator[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield tensors under the file's names. The tensors of one group are in memory at a time."""
        for group in self.groups:
            held = {}
            for expected in group.names:
                name, tensor = next(tensors)
                assert name == self.first.get(expected, expected), (name, expected)
                # A gathered tensor is freed when the next one is requested, so tensors of a larger group are copied.
                held[expected] = tensor.detach() if len(group.names) == 1 else tensor.detach().to("cpu", copy=True)
            found = _reverted(self.model, self.conversions, held)
            for name, _ in group.sizes:
                yield name, found[name]


def naming_of(model: Any, tensors: Tensors, source: set[str]) -> Naming:
    """Choose the conversions whose names have most in common with the source's.

    Args:
        tensors: all saved tensors of the model, on the meta device.
        source: names of the tensors in the directory that the model was loaded from.
    """
    first = _first_names(model, tensors, source)
    called = {name: other for other, name in first.items()}
    tensors = {called.get(name, name): tensor for name, tensor in tensors.items()}
    found = [(conversions, names) for conversions in _candidates(model) if (names := _try(model, conversions, tensors))]
    conversions, whole = max(found, key=lambda pair: len(pair[1].keys() & source))
    layers: dict[str, Tensors] = {}
    for name, tensor in tensors.items():
        match = _LAYER.match(name)
        layers.setdefault(match[1] if match else name, {})[name] = tensor
    groups = [part for layer in layers.values() for part in _split(model, conversions, layer)]
    together = {name: one.shape for _, names in groups for name, one in names.items()}
    if together != {name: one.shape for name, one in whole.items()}:
        groups = [(tensors, whole)]  # the conversion combines tensors of several layers
    parts = [
        Group(tuple(members), tuple((name, one.nbytes) for name, one in names.items())) for members, names in groups
    ]
    return Naming(model, conversions, tuple(parts), first)


def _first_names(model: Any, tensors: Tensors, source: set[str]) -> dict[str, str]:
    """Map the source's name of a tied tensor to its name in `tensors`, if they differ (as for XLM-RoBERTa's head).

    transformers loads a tied tensor under any of its names. Other programs know only the published one.
    """
    same: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        same.setdefault(id(parameter), []).append(name)
    found: dict[str, str] = {}
    for first, *others in same.values():
        published = [name for name in others if name in source]
        if published and first in tensors and first not in source:
            found[published[0]] = first
    return found


def _split(model: Any, conversions: list[Any], layer: Tensors) -> list[tuple[Tensors, Tensors]]:
    """Split a layer into single tensors if converting them one by one gives the same as converting them together."""
    together = _try(model, conversions, layer)
    alone = [({name: tensor}, _try(model, conversions, {name: tensor})) for name, tensor in layer.items()]
    shapes = {name: one.shape for _, names in alone for name, one in names.items()}
    if together and shapes == {name: one.shape for name, one in together.items()}:
        return alone
    return [(layer, together)]


def _candidates(model: Any) -> Iterator[list[Any]]:
    """Yield the conversions that loading may have applied: without prefix changes, with them, or none."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import PrefixChange

    known = get_model_conversion_mapping(model, add_legacy=False)
    yield [conversion for conversion in known if not isinstance(conversion, PrefixChange)]
    yield known
    yield []


def _try(model: Any, conversions: list[Any], tensors: Tensors) -> Tensors:
    """Return the converted tensors; an empty dict if the conversion needs other tensors as well."""
    try:
        return _reverted(model, conversions, tensors)
    except Exception:  # operations of a conversion may raise anything
        return {}


def _reverted(model: Any, conversions: list[Any], tensors: Tensors) -> Tensors:
    if not conversions:
        return tensors
    from transformers.core_model_loading import revert_weight_conversion

    with mock.patch.object(model, "_weight_conversions", conversions, create=True):
        return dict(revert_weight_conversion(model, tensors))
