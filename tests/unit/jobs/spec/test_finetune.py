"""The spec: every field says what it is, nothing can be assigned, and nothing may contradict itself."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from cluster.errors import SpecError
from jobs.spec.checking.fields import section_model, spec_fields
from jobs.spec.finetune import Spec
from jobs.spec.load import spec_of

# Everything that the action needs but for the sources.
RAISE_REPLAY: dict[str, Any] = {
    "eval": {"general": "/g", "eval_steps": 5},
    "checkpoint": {"metric_for_best_model": "loss"},
    "remedies": {"forgetting": {"max_general_loss_increase": 0.1, "action": "raise_replay"}},
}


def values(**sections: Any) -> dict[str, Any]:
    base: dict[str, Any] = {"model": {"path": "/m", "task": "causal-lm"}, "data": {"train": "/d", "format": "text"}}
    for name, section in sections.items():
        base[name] = {**base.get(name, {}), **section} if isinstance(section, dict) else section
    return base


@pytest.mark.parametrize("name", list(spec_fields(Spec)))
def test_field_is_documented_in_one_sentence(name: str) -> None:
    description = spec_fields(Spec)[name].description
    assert description and description.endswith(".") and "\n" not in description


def models() -> list[type[BaseModel]]:
    return [Spec, *(model for info in spec_fields(Spec).values() if (model := section_model(info)))]


@pytest.mark.parametrize("model", models())
def test_section_is_frozen_refuses_unknown_keys_and_holds_no_list(model: type[BaseModel]) -> None:
    assert model.model_config.get("frozen") and model.model_config.get("extra") == "forbid"
    assert model.__doc__
    assert not any("list[" in str(info.annotation) for info in model.model_fields.values())


def test_only_model_and_data_must_be_given() -> None:
    required = {name for name, info in spec_fields(Spec).items() if info.is_required()}
    assert required == {"model", "model.path", "model.task", "data", "data.train", "data.format"}


def test_nothing_can_be_assigned() -> None:
    with pytest.raises(ValidationError):
        Spec.model_validate(values()).train.learning_rate = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"train": {"warmup_ratio": 0.1, "warmup_steps": 5}}, "warmup_ratio and warmup_steps are both given"),
        ({"train": {"max_steps": 1, "num_train_epochs": 1}}, "num_train_epochs and max_steps are both given"),
        ({"train": {"global_batch_size": 1, "global_batch_tokens": 9}}, "both given"),
        ({"train": {"bf16": True, "fp16": True}}, "bf16 and fp16 are both true"),
        ({"train": {"fp16": True}, "resources": {"gpus_per_worker": 0}}, "fp16 needs GPUs, but gpus_per_worker is 0"),
        (
            {"model": {"attn_implementation": "flash_attention_2"}, "resources": {"gpus_per_worker": 0}},
            "flash_attention_2 needs GPUs, but gpus_per_worker is 0",
        ),
        (
            {
                "model": {"task": "sequence-classification", "num_labels": 2},
                "data": {"format": "classification"},
                "eval": {"general": "/g"},
            },
            "a classifier predicts no tokens, so it has no loss on general text",
        ),
        ({"remedies": {"forgetting": {"max_general_loss_increase": 0.1}}}, "remedies.forgetting needs eval.general"),
        (
            {"remedies": {"forgetting": {"max_general_loss_increase": 0.1}}, "eval": {"general": "/g"}},
            "remedies.forgetting needs checkpoint.metric_for_best_model",
        ),
        ({"remedies": {"forgetting": {"max_general_loss_increase": 0}}}, "greater than 0"),
        ({"data": {"train": [{"path": "/t", "replay": True}]}}, "replay needs a weight for every source"),
        ({"data": {"eval": [{"path": "/t", "replay": True}]}}, "eval: replay is for train"),
        ({"eval": {"general": {"path": "/g", "replay": True}}}, "replay is for data.train"),
        (
            {"data": {"train": [{"path": "/t", "weight": 9}, {"path": "/u", "weight": 1}]}, **RAISE_REPLAY},
            "raise_replay needs a source with `replay: true` in data.train, and one without",
        ),
        (
            {"data": {"train": [{"path": "/t", "weight": 9, "replay": True}]}, **RAISE_REPLAY},
            "raise_replay needs a source with `replay: true` in data.train, and one without",
        ),
        (
            {
                "data": {
                    "train": [
                        {"path": "/t", "weight": 9},
                        {"path": "/u", "weight": 1, "replay": True, "max_epochs": 2},
                    ]
                },
                **RAISE_REPLAY,
            },
            "data.train: /u has max_epochs, so remedies.forgetting cannot raise its share",
        ),
        ({"eval": {"general": {"path": "/g", "format": "classification"}}}, "format of /g in eval.general is class"),
        ({"train": {"warmup_steps": 1.5}}, "must be a whole number, or a share below 1"),
        ({"train": {"zero": {"stage": 2, "offload_param": "cpu"}}}, "offload_param needs stage 3, but stage is 2"),
        ({"data": {"eval": "/e", "eval_fraction": 0.1}}, "eval and eval_fraction are both given"),
        ({"data": {"labels": ["a", "b"]}}, "for sequence-classification only"),
        ({"data": {"format": "classification"}}, "sequence-classification goes with classification"),
        ({"model": {"task": "sequence-classification"}, "data": {"format": "classification"}}, "needs data.labels"),
        (
            {
                "model": {"task": "sequence-classification", "num_labels": 3},
                "data": {"format": "classification", "labels": ["a", "b"]},
            },
            "model.num_labels is 3, but data.labels names 2",
        ),
        (
            {"model": {"task": "sequence-classification"}, "data": {"format": "classification", "labels": ["a", "a"]}},
            "labels repeats a name",
        ),
        (
            {"model": {"task": "sequence-classification"}, "data": {"format": "classification", "labels": ["a", " b"]}},
            "labels: ' b' begins or ends with a space",
        ),
        (
            {
                "model": {"task": "sequence-classification"},
                "data": {"format": "classification", "labels": ["a", "b"]},
                "eval": {"lm_eval": {"tasks": ["arc_easy"]}},
            },
            "eval.lm_eval is for causal-lm",
        ),
        ({"eval": {"lm_eval": {"tasks": ["arc_easy", "arc_easy"]}}}, "arc_easy is listed twice"),
        (
            {"data": {"eval": "/e"}, "checkpoint": {"metric_for_best_model": "lm_eval_arc_easy_acc"}},
            "metric_for_best_model is lm_eval_arc_easy_acc, but",
        ),
        ({"data": {"eval": "/e"}, "checkpoint": {"metric_for_best_model": "eval_los"}}, "; did you mean loss\\?"),
        ({"checkpoint": {"metric_for_best_model": "eval_loss"}}, "metric_for_best_model needs held-out samples"),
        ({"checkpoint": {"greater_is_better": True}}, "greater_is_better needs metric_for_best_model"),
    ],
)
def test_contradiction_is_refused(sections: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        Spec.model_validate(values(**sections))


@pytest.mark.parametrize("name", ["Run", "a b", "", "-a", "a/b", "a" * 64])
def test_name_that_cannot_be_a_folder_everywhere_is_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        Spec.model_validate(values(name=name))


def test_files_of_lm_eval_are_relative_to_the_spec_and_their_metrics_may_be_the_best() -> None:
    best = {"metric_for_best_model": "eval_lm_eval_mine_acc"}
    tasks = ["arc_easy", "tasks/mine.yaml"]
    spec = Spec.model_validate(values(data={"eval": "/e"}, eval={"lm_eval": {"tasks": tasks}}, checkpoint=best))
    assert spec.evaluates and spec.checkpoint.greater_is_best
    lower = Spec.model_validate(
        values(
            data={"eval": "/e"},
            eval={"lm_eval": {"tasks": tasks}},
            checkpoint={"metric_for_best_model": "lm_eval_mine_bits_per_byte"},
        )
    )
    assert not lower.checkpoint.greater_is_best
    assert spec.with_absolute_paths("/here/spec.yaml").eval.lm_eval.tasks == ("arc_easy", "/here/tasks/mine.yaml")


def test_number_of_labels_comes_from_their_names() -> None:
    sections = {
        "model": {"task": "sequence-classification"},
        "data": {"format": "classification", "labels": ["a", "b"]},
    }
    spec = Spec.model_validate(values(**sections))
    assert spec.num_labels == 2 and not spec.packed


def test_flash_attention_with_packed_rows_is_refused_in_batches_of_several_rows() -> None:
    flash = {"attn_implementation": "flash_attention_2"}
    one = {"per_device_train_batch_size": 1}
    with pytest.raises(ValidationError, match="only in batches of one row"):
        Spec.model_validate(values(model=flash, train={"per_device_train_batch_size": 2}))
    Spec.model_validate(values(model=flash, train=one, eval={"per_device_eval_batch_size": 1}))
    Spec.model_validate(values(model=flash, data={"packing": False}, train={"per_device_train_batch_size": 2}))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("name", "section", "named"),
    [
        ("train", {"per_device_train_batch_size": 4, "learning_rate": 1e-4}, None),
        ("train", {"learning_rate": "fast"}, "train.learning_rate"),
        ("train", [], "train"),
        ("resources", {"num_workers": {"min": 1, "max": 2}}, None),
        ("resources", {"num_workers": 0}, "resources.num_workers"),
        ("resources", 5, "resources"),
    ],
)
def test_copy_with_plain_values_for_a_section_can_be_dumped_and_checked(
    name: str, section: Any, named: str | None
) -> None:
    """`model_copy` checks nothing, so that a script may give it a dictionary where the spec has a section."""
    copy = Spec.model_validate(values()).model_copy(update={name: section})
    dumped = copy.model_dump(mode="json", warnings=False)
    assert dumped[name] == section
    if named is None:
        assert spec_of(dumped) == Spec.model_validate(values(**{name: section}))
    else:
        with pytest.raises(SpecError) as caught:
            spec_of(dumped)
        assert named in str(caught.value)
