"""Reads from the source of transformers what a model type supports, without importing it. Light to import.

Importing transformers' model classes takes seconds and needs torch, which a laptop may lack. Each class states what it
supports in class attributes, and a type's classes are in one file, so that file's syntax tree is enough. A feature
counts as supported unless the source clearly says otherwise, because wrongly rejecting a model would be worse than a
late error.
"""

from __future__ import annotations

import ast
import functools
import glob
import importlib.metadata
import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, get_args

from jobs.spec.finetune import Spec, Task

_MAPPINGS: Final[dict[Task, str]] = {
    "causal-lm": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "sequence-classification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
}
_FOLDERS: Final = "SPECIAL_MODEL_TYPE_TO_MODULE_NAME"
_AUTO: Final = "models/auto"
_READS_BOTH_WAYS: Final = ("cpmant",)  # language models that see later tokens whatever config.json says


def architecture_problems(config: dict[str, Any], spec: Spec) -> list[str]:
    """List what the spec asks for and the model type does not support; empty if transformers is not installed."""
    root, model_type = transformers_root(), config.get("model_type")
    if root is None or not isinstance(model_type, str):
        return []
    class_name = class_names(root, spec.model.task).get(model_type)
    if class_name is None:
        return [_no_class(root, model_type, spec.model.task)]
    if spec.model.task == "causal-lm" and model_type in _READS_BOTH_WAYS:
        return [
            f"{class_name} reads a text in both directions, so it would see each token that it has to predict. Choose "
            "a causal model"
        ]
    found = model_class(root, model_type, class_name)
    return _class_problems(found, spec) if found else []


def _class_problems(found: ModelClass, spec: Spec) -> list[str]:
    problems = []
    kernel, kernels = spec.model.attn_implementation, found.attention_kernels
    if kernel is not None and kernel not in kernels:
        problems.append(
            f"{found.name} does not support model.attn_implementation: {kernel}. Leave it out, or choose one of: "
            f"{', '.join(kernels)}"
        )
    if spec.train.gradient_checkpointing and not found.has("supports_gradient_checkpointing"):
        problems.append(
            f"{found.name} does not support train.gradient_checkpointing. Leave it out, and lower "
            "train.per_device_train_batch_size or data.seq_len if memory is short"
        )
    if spec.model.task == "sequence-classification" and not found.takes_attention_mask:
        sizes = {"train.per_device_train_batch_size": spec.train.per_device_train_batch_size}
        if spec.data.has_eval:
            sizes["eval.per_device_eval_batch_size"] = spec.eval.per_device_eval_batch_size
        problems += [
            f"{found.name} takes no attention mask: padding would be part of the text, so its answers would depend on "
            f"the other rows of a batch. Set {name} ({size}) to 1"
            for name, size in sizes.items()
            if size > 1
        ]
    return problems


def _no_class(root: str, model_type: str, task: Task) -> str:
    version = importlib.metadata.version("transformers")
    if tasks := [other for other in get_args(Task) if model_type in class_names(root, other)]:
        return f"transformers {version} has no class for {task} of model type {model_type}: it has {', '.join(tasks)}"
    if is_known(model_type):
        return (
            f"transformers {version} has no class for {task} of model type {model_type}, nor for the other tasks of "
            "model.task: choose a text model"
        )
    return (
        f"transformers {version} does not know model type {model_type}: install a release that has it, or choose "
        "another model"
    )


def transformers_root() -> str | None:
    """Return the directory of transformers; None if it is not installed."""
    found = importlib.util.find_spec("transformers")  # does not import it
    folders = list((found.submodule_search_locations if found else None) or [])
    return folders[0] if folders else None


def is_known(model_type: str) -> bool:
    """Whether the installed transformers has classes for a model type."""
    root = transformers_root()
    return (
        root is not None
        and bool(model_type)
        and os.path.isdir(os.path.join(root, "models", module_of(root, model_type)))
    )


@functools.cache
def class_names(root: str, task: Task) -> dict[str, str]:
    """Return the name of the class for the task, by model type."""
    return _pairs(os.path.join(root, _AUTO, "modeling_auto.py"), _MAPPINGS[task])


def module_of(root: str, model_type: str) -> str:
    """Return the folder under models/ that holds the type's classes."""
    special = _pairs(os.path.join(root, _AUTO, "auto_mappings.py"), _FOLDERS)
    return special.get(model_type, model_type.replace("-", "_"))


@functools.cache
def _pairs(path: str, name: str) -> dict[str, str]:
    """Parse `name = OrderedDict([(key, value), ...])`. If a value is a tuple, its first string counts."""
    pairs: dict[str, str] = {}
    for node in _tree(path).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [name]:
            for pair in (inner for inner in ast.walk(node) if isinstance(inner, ast.Tuple) and len(inner.elts) == 2):
                key, value = pair.elts
                first = value.elts[0] if isinstance(value, ast.Tuple) and value.elts else value
                if isinstance(key, ast.Constant) and isinstance(first, ast.Constant):
                    pairs.setdefault(str(key.value), str(first.value))
    return pairs


@functools.cache
def _tree(path: str) -> ast.Module:
    try:
        with open(path, encoding="utf-8") as file:
            return ast.parse(file.read())
    except (OSError, SyntaxError, ValueError):
        return ast.Module([], [])


def model_class(root: str, model_type: str, name: str) -> ModelClass | None:
    """Find a class and its bases in the source of transformers; None if its file is not found."""
    for path in _files(root, model_type, name):
        if lineage := tuple(_lineage(path, name)):
            return ModelClass(name, lineage)
    return None


def _files(root: str, model_type: str, name: str) -> Iterator[str]:
    """Yield the files that may hold a class: those of its type, then those of other types with the same class."""
    same = [other for task in get_args(Task) for other, its in class_names(root, task).items() if its == name]
    for module in dict.fromkeys(module_of(root, one) for one in [model_type, *same]):
        yield from sorted(glob.glob(os.path.join(root, "models", module, "modeling_*.py")))


def _lineage(path: str, name: str) -> Iterator[ast.ClassDef]:
    """Yield a class and its bases, depth first, which is close enough to Python's order for these attributes."""
    tree = _tree(path)
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            yield node
            for base in node.bases:
                yield from _lineage(path, ast.unparse(base))
            return
        if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names) and node.level:
            folder = path
            for _ in range(node.level):
                folder = os.path.dirname(folder)
            yield from _lineage(os.path.join(folder, *(node.module or "").split(".")) + ".py", name)
            return


@dataclass(frozen=True)
class ModelClass:
    """A model class, as its source describes it."""

    name: str
    lineage: tuple[ast.ClassDef, ...]  # the class first

    def has(self, flag: str) -> bool:
        """Whether a class attribute is true; also True if its value is not a constant."""
        for owner in self.lineage:
            for node in owner.body:
                targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
                if any(isinstance(target, ast.Name) and target.id == flag for target in targets):
                    value = getattr(node, "value", None)
                    return bool(value.value) if isinstance(value, ast.Constant) else True
        return False

    @property
    def takes_attention_mask(self) -> bool:
        """Whether `forward` has the argument `attention_mask`; also True if its source is not found."""
        for owner in self.lineage:
            for node in owner.body:
                if isinstance(node, ast.FunctionDef) and node.name == "forward":
                    return "attention_mask" in {one.arg for one in [*node.args.args, *node.args.kwonlyargs]}
        return True

    @property
    def attention_kernels(self) -> tuple[str, ...]:
        """Values that model.attn_implementation may have."""
        flags = {"sdpa": "_supports_sdpa", "eager": None, "flash_attention_2": "_supports_flash_attn"}
        return tuple(kernel for kernel, flag in flags.items() if flag is None or self.has(flag))
