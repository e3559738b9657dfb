"""The keys that a message lists are those of the value that is wrong, also in the base of a sweep."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.errors import SpecError
from jobs.spec.data import Columns, Source
from jobs.spec.load import load_marked

JOB = "model: {path: ./m, task: causal-lm}\ndata: {train: d.jsonl, format: text, eval_fraction: 0.1}\n"
SOURCE = ", ".join(Source.model_fields)
COLUMNS = ", ".join(Columns.model_fields)


@pytest.fixture(params=["job.yaml", "sweep.yaml"])
def spec(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """A job or a sweep, and the prefix of the job's fields in it."""
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "sweep.yaml").write_text("kind: sweep\nbase: job.yaml\n")
    return str(tmp_path / request.param), "base." if request.param == "sweep.yaml" else ""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("queue.labels=x", 'queue.labels: must be names with their values (NAME: text), but is the text "x"'),
        ("queue.labels={-x: a}", 'queue.labels.-x: "-x" is not a valid label: use up to 100 letters'),
        ("queue.secrets=[a-b]", 'queue.secrets.0: "a-b" is not a valid variable name'),
        ("queue.on_end={url: x}", "queue.on_end.url: unknown key; on_end has webhook, command"),
        ("queue.on_end=3", "queue.on_end: must be a section with the keys webhook, command, but is 3"),
        ("data.train=[3]", f"data.train.0: must be a section with the keys {SOURCE}, but is 3"),
        ("data.train=[{path: x, foo: 1}]", f"data.train.0.foo: unknown key; a source has {SOURCE}"),
        ("data.train=[{path: x, columns: {foo: x}}]", f"columns.foo: unknown key; columns has {COLUMNS}"),
        ("eval.general=[{path: x, columns: 3}]", f"columns: must be a section with the keys {COLUMNS}, but is 3"),
        ("eval.general=[{path: x, colums: {}}]", "eval.general.0.colums: unknown key; did you mean columns?"),
    ],
)
def test_the_keys_are_those_of_the_value(spec: tuple[str, str], change: str, said: str) -> None:
    path, prefix = spec
    with pytest.raises(SpecError) as caught:
        load_marked(path, [prefix + change])
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"--set: {prefix}") and said in line


def test_a_field_of_the_job_at_the_top_of_a_sweep_belongs_under_base_and_has_its_place(
    tmp_path: Path, spec: tuple[str, str]
) -> None:
    with pytest.raises(SpecError) as caught:
        load_marked(str(tmp_path / "sweep.yaml"), ["train.learning_rate=1e-5"])
    assert str(caught.value) == "--set: train: belongs under base"
