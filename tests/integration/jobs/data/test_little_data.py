"""Which data is prepared in the process that asks, whatever the engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.data.preparation.engines import is_little
from jobs.data.preparation.prepare import prepare
from tests.integration.jobs.data.test_prepare import model_dir, quiet, spec_of  # noqa: F401 - a fixture


@pytest.mark.parametrize(
    ("files", "little"),
    [
        ([("a.jsonl", 500), ("b.csv", 500)], True),
        ([("a.jsonl", 501), ("b.csv", 500)], False),
        ([("a.jsonl.gz", 100)], True),
        ([("a.jsonl.gz", 101)], False),
        ([("a.parquet", 101)], False),
        ([(f"{number}.jsonl", 1) for number in range(33)], False),
    ],
)
def test_what_is_little_is_told_by_its_text_and_its_files(files: list[tuple[str, int]], little: bool) -> None:
    assert is_little(files, 1000) is little


def test_little_data_is_prepared_here_unless_some_is_there_that_may_be_damaged(
    tmp_path: Path,
    model_dir: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Chosen(Exception):
        pass

    def chosen(engine: str) -> None:
        raise Chosen(engine)

    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": f"a film of {name} " * 20}) + "\n")
    first = spec_of(tmp_path / "out", str(tmp_path / "a.jsonl"), "text")
    both = spec_of(tmp_path / "out", str(tmp_path / "*.jsonl"), "text")
    apart = both.model_copy(update={"data": both.data.model_copy(update={"eval": first.data.train})})
    with monkeypatch.context() as patched:
        patched.setattr("jobs.data.preparation.prepare.started", chosen)
        for up_to, engine in ((10_000, "plain"), (100, "ray"), (0, "ray")):
            with pytest.raises(Chosen, match=engine):
                prepare(both, model_dir, engine="ray", say=quiet, plain_up_to=up_to)
    prepare(first, model_dir, engine="plain", say=quiet)
    monkeypatch.setattr("jobs.data.preparation.prepare.started", chosen)
    with pytest.raises(Chosen, match="ray"):
        prepare(apart, model_dir, engine="ray", say=quiet, plain_up_to=10_000)
