"""Names of tensors in an exported directory: those of the source checkpoint, not those inside transformers.

transformers renames and fuses weights of some types while it loads them (the experts of a layer become one tensor), and
`save_pretrained` takes that back for the whole model at once. Here it is taken back for few tensors at a time.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

Tensors = dict[str, torch.Tensor]
_LAYER = re.compile(r"(.*?\.\d+)\.")


@dataclass(frozen=True)
class Group:
    """Tensors of the model that become tensors of the file together."""

    names: tuple[str, ...]  # in the model; a tied tensor has the name that the source uses, if it uses one
    sizes: tuple[tuple[str, int], ...]  # in the file, with bytes


@dataclass(frozen=True)
class Naming:
    """How a model's tensors are called in a file."""

    model: Any
    conversions: list[Any]  # of transformers, as they are applied on loading
    groups: tuple[Group, ...]
    first: Mapping[str, str]  # for a tied tensor, from its name in `groups` to the one that the model lists first

    @property
    def order(self) -> list[str]:
        """The model's names in the order in which `converted` takes their tensors."""
        return [self.first.get(name, name) for group in self.groups for name in group.names]

    @property
    def sizes(self) -> list[tuple[str, int]]:
        """The file's names in the order in which `converted` gives them."""
        return [size for group in self.groups for size in group.sizes]

    def converted(self, tensors: Iterator[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """Tensors under the file's names; those of one group are in memory at a time."""
        for group in self.groups:
            held = {}
            for expected in group.names:
                name, tensor = next(tensors)
                assert name == self.first.get(expected, expected), (name, expected)
                # A tensor that was gathered from all ranks is gone when the next one is asked for.
                held[expected] = tensor.detach() if len(group.names) == 1 else tensor.detach().to("cpu", copy=True)
            found = _reverted(self.model, self.conversions, held)
            for name, _ in group.sizes:
                yield name, found[name]


def naming_of(model: Any, tensors: Tensors, source: set[str]) -> Naming:
    """The naming that shares most names with the source's.

    Args:
        tensors: All of the model's tensors that are saved, on the meta device.
        source: Names of the tensors in the directory that the model was loaded from.
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
    together: Tensors = {}
    for _, names in groups:
        together |= names or {}
    if {name: tensor.shape for name, tensor in together.items()} != {name: one.shape for name, one in whole.items()}:
        groups = [(tensors, whole)]  # a conversion that reaches over layers
    return Naming(model, conversions, tuple(_group(members, names or {}) for members, names in groups), first)


def _first_names(model: Any, tensors: Tensors, source: set[str]) -> dict[str, str]:
    """From the source's name of a tied tensor to its name in `tensors`, where the two differ (XLM-RoBERTa's head).

    transformers loads a tied tensor under each of its names. Other programs know only the published one.
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


def _split(model: Any, conversions: list[Any], layer: Tensors) -> list[tuple[Tensors, Tensors | None]]:
    """Each tensor of a layer alone where that gives the same as all of them together."""
    together = _try(model, conversions, layer)
    alone = [({name: tensor}, _try(model, conversions, {name: tensor})) for name, tensor in layer.items()]
    shapes = {name: one.shape for _, names in alone for name, one in (names or {}).items()}
    if together is not None and shapes == {name: one.shape for name, one in together.items()}:
        return list(alone)
    return [(layer, together)]


def _group(members: Tensors, found: Tensors) -> Group:
    return Group(tuple(members), tuple((name, one.numel() * one.element_size()) for name, one in found.items()))


def _candidates(model: Any) -> Iterator[list[Any]]:
    """What transformers may have done on loading: to published names, to a prefix beside them, or nothing."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import PrefixChange

    known = get_model_conversion_mapping(model, add_legacy=False)
    yield [conversion for conversion in known if not isinstance(conversion, PrefixChange)]
    yield known
    yield []


def _try(model: Any, conversions: list[Any], tensors: Tensors) -> Tensors | None:
    """The converted tensors; None where the conversion needs others beside them."""
    try:
        return _reverted(model, conversions, tensors)
    except Exception:  # conversions raise whatever their operations raise
        return None


def _reverted(model: Any, conversions: list[Any], tensors: Tensors) -> Tensors:
    if not conversions:
        return tensors
    from transformers.core_model_loading import revert_weight_conversion

    before = getattr(model, "_weight_conversions", None)
    model._weight_conversions = conversions
    try:
        return dict(revert_weight_conversion(model, tensors))
    finally:
        with contextlib.suppress(AttributeError):
            del model._weight_conversions
        if before is not None:
            model._weight_conversions = before
