"""Finds names in lora.target_modules that match no module of a model, from the names of its weights. Pure.

The check of a run builds the model without weights, which takes seconds. This one says nothing where names of weights
do not tell the names of modules.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Final

from jobs.spec.method import ALL_LINEAR

# Types of models whose weights transformers reads without changing their names. An integration test asks it.
SAME_NAMES: Final = frozenset(
    {
        "albert", "bert", "bloom", "camembert", "codegen", "cohere", "cohere2", "deberta-v2", "distilbert", "electra",
        "ernie4_5", "exaone4", "falcon", "gemma", "gemma2", "gemma3_text", "glm", "glm4", "gpt2", "gpt_bigcode",
        "gpt_neo", "gpt_neox", "gptj", "granite", "helium", "llama", "mistral", "modernbert", "mpnet", "mpt",
        "nemotron", "olmo", "olmo2", "olmo3", "opt", "phi", "phi3", "qwen2", "qwen3", "roberta", "seed_oss", "smollm3",
        "stablelm", "starcoder2", "xlm-roberta",
    }
)  # fmt: skip
_IN_A_LAYER: Final = re.compile(r"\.\d+\.")
_MOST_NAMES: Final = 20


def targets_problem(wanted: Collection[str], model_type: object, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Say which wanted names match no module with a matrix; None: all match, or the weights do not tell.

    A module matches if its name is, or ends with, the wanted one. In files, names may lack a prefix such as `model.`.

    Args:
        wanted: names in lora.target_modules.
        model_type: of config.json.
        shapes: of all tensors in the model's files, by name.
    """
    modules = [name.removesuffix(".weight") for name, shape in shapes.items() if len(shape) == 2 and ".weight" in name]
    if model_type not in SAME_NAMES or not modules:
        return None
    strangers = [
        name
        for name in wanted
        if name != ALL_LINEAR and not any(f".{one}".endswith(f".{name}") or name.endswith(f".{one}") for one in modules)
    ]
    if not strangers:
        return None
    ends = list(dict.fromkeys(one.rpartition(".")[2] for one in modules if _IN_A_LAYER.search(one)))
    strange, known = ", ".join(strangers), ", ".join(ends[:_MOST_NAMES])
    more = f" and {len(ends) - _MOST_NAMES} more" if len(ends) > _MOST_NAMES else ""
    return (
        f"the model has no linear module {strange}: its layers have {known}{more}. "
        f"Name some of them, or leave it out ({ALL_LINEAR})"
    )
