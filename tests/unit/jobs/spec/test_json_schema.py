"""The JSON schema that `fleetune spec --json-schema` prints for editors accepts what `load_spec` accepts."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from jobs.spec.checking.lines import parse
from jobs.spec.load import SPEC_MODELS

ROOT = Path(__file__).parents[4]
PAGES = ("spec", "search", "comparison")
JOB = {"model": {"path": "m", "task": "causal-lm"}, "data": {"train": "d.jsonl", "format": "text"}}
BASE = {"name": "x", "base": "job.yaml"}


def mistakes(value: dict[str, Any]) -> list[str]:
    """The mistakes that an editor would underline."""
    schema = SPEC_MODELS[value.get("kind", "finetune")].model_json_schema()
    validator = importlib.import_module("jsonschema").Draft202012Validator  # a dependency of Ray, without types
    return [
        f"{error.json_path}: {error.message}" for error in validator(json.loads(json.dumps(schema))).iter_errors(value)
    ]


def specs_of(page: str) -> list[dict[str, Any]]:
    """The whole specs in the YAML blocks of a page; other blocks show a section."""
    blocks = re.findall(r"^```yaml\n(.*?)^```", (ROOT / f"docs/{page}.md").read_text(), re.MULTILINE | re.DOTALL)
    values = [parse(block, "page.yaml").value for block in blocks]
    return [value for value in values if "kind" in value or "model" in value]


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: str(path.name))
def test_the_schema_accepts_every_example(path: Path) -> None:
    assert mistakes(parse(path.read_text(), str(path)).value) == []


@pytest.mark.parametrize("page", PAGES)
def test_the_schema_accepts_the_specs_of_the_documents(page: str) -> None:
    assert [mistakes(value) for value in specs_of(page)] == [[]] * len(specs_of(page)) != []


@pytest.mark.parametrize(
    "value",
    [
        {**JOB, "method": "lora", "lora": {"target_modules": "q_proj"}},
        {**JOB, "method": {"kind": "prompt"}, "eval": {"general": "x.jsonl"}},
        {**JOB, "data": {"train": ["a.jsonl", {"path": "b.jsonl"}], "eval": {"path": "c.jsonl"}, "format": "text"}},
        {**JOB, "resources": {"num_workers": {"min": 1, "max": 4}}},
        {**BASE, "kind": "sweep", "base": JOB},
        {**BASE, "kind": "compare", "methods": ["full", "lora"]},
        {**BASE, "kind": "compare", "methods": ["full", {"name": "lora", "lora": {"rank": 4}}]},
    ],
)
def test_the_schema_accepts_every_short_form(value: dict[str, Any]) -> None:
    assert mistakes(value) == []


@pytest.mark.parametrize(
    "value",
    [
        {**JOB, "method": "qlora"},
        {**JOB, "data": {"train": [], "format": "text"}},
        {**JOB, "data": {"train": [{"weight": 1}], "format": "text"}},
        {**JOB, "resources": {"num_workers": {"min": 1}}},
        {**JOB, "resources": {"num_workers": 0}},
        {**BASE, "kind": "sweep", "base": 3},
        {**BASE, "kind": "compare", "methods": ["full", {"name": "small", "lora": {"rank": 4}}]},
    ],
)
def test_the_schema_still_refuses_what_a_spec_refuses(value: dict[str, Any]) -> None:
    assert mistakes(value) != []
