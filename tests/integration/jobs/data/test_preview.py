"""`fleetune data show`: rows as the model sees them, before and after the data is prepared."""

from pathlib import Path
from typing import Any

import pytest

from cluster.errors import DataError
from jobs.data.preparation.prepare import prepare
from jobs.data.quality.preview import shown_rows
from jobs.spec.finetune import Spec
from tests.integration.jobs.data.test_check import jsonl, spec_of
from tests.integration.jobs.data.test_prepare import model_dir, quiet  # noqa: F401 - a fixture

TEXTS = ("a film that moves", "warm 🎬 story, never dull")


@pytest.fixture
def spec(tmp_path: Path) -> Spec:
    rows: list[Any] = [{"prompt": f"{text}:", "completion": " bright"} for text in TEXTS]
    data = {"train": jsonl(tmp_path / "rows.jsonl", rows), "format": "prompt-completion"}
    return spec_of(tmp_path, "causal-lm", data)


@pytest.mark.parametrize("is_prepared", [False, True])
def test_the_pieces_of_a_sample_are_its_text_and_its_targets_are_marked(
    spec: Spec,
    model_dir: str,  # noqa: F811
    is_prepared: bool,
) -> None:
    if is_prepared:
        prepare(spec, model_dir, engine="plain", say=quiet)
    (row,) = shown_rows(spec, model_dir, 3, "train", 0)  # two samples, packed into one row
    assert row.number == 0 and row.prepared == is_prepared
    shown = {"".join(sample.pieces) for sample in row.samples}
    assert shown == {f"{text}: bright<|im_end|>" for text in TEXTS}
    for sample in row.samples:
        assert len(sample.tokens) == len(sample.pieces) == len(sample.targets) and sample.label is None
        learned = [piece for piece, target in zip(sample.pieces, sample.targets, strict=True) if target]
        assert "".join(learned) == " bright<|im_end|>"
    (film,) = [sample for sample in row.samples if "🎬" in "".join(sample.pieces)]
    place = next(at for at, piece in enumerate(film.pieces) if "🎬" in piece)
    assert not film.pieces[place - 1], "a character of several tokens is shown with the last of them"


def test_a_class_is_shown_by_its_name_and_rows_after_the_last_are_refused(tmp_path: Path, model_dir: str) -> None:  # noqa: F811
    rows: list[Any] = [{"text": text, "label": label} for text, label in zip(TEXTS, ("good", "bad"), strict=True)]
    rows.append({"text": None, "label": "good"})
    data = {"train": jsonl(tmp_path / "rows.jsonl", rows), "format": "classification", "labels": ["good", "bad", "so"]}
    spec = spec_of(tmp_path, "sequence-classification", data)
    said = list[str]()
    found = shown_rows(spec, model_dir, 5, "train", 1, said.append)
    assert len(said) == 1 and said[0].startswith("1 record cannot be used, and is not shown:")
    assert [(row.number, [sample.label for sample in row.samples]) for row in found] == [(1, ["bad"])]
    assert not any(found[0].samples[0].targets)
    with pytest.raises(DataError, match="there is no row 2 in train among those that are looked at before"):
        shown_rows(spec, model_dir, 1, "train", 2)
