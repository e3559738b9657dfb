"""What can be found wrong with a job before a worker starts is found then, all of it at once."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from cluster.errors import CapacityError, DataError, InputError, SpecError, StorageError
from cluster.local.machine import has_gpus
from jobs.finetune import run_on_ray
from jobs.preflight.validate import check_metrics, no_gpu_here, validate
from jobs.run.progress import NoProgress
from jobs.spec.finetune import Spec

STABLE = {"lr_scheduler_type": "warmup_stable_decay"}
BEST = {"metric_for_best_model": "loss", "load_best_model_at_end": True}


@pytest.fixture
def base(tmp_path: Path) -> dict[str, Any]:
    model = tmp_path / "m"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llama"}')
    (model / "tokenizer.json").touch()
    (model / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")  # whole, though it holds no tensor
    (tmp_path / "d.jsonl").write_text("\n".join(json.dumps({"text": f"row {n}"}) for n in range(3)))
    return {
        "model": {"path": str(model), "task": "causal-lm"},
        "data": {"train": str(tmp_path / "d.jsonl"), "format": "text"},
        "storage_path": str(tmp_path / "runs"),
    }


def spec(base: dict[str, Any], **sections: Any) -> Spec:
    merged = {
        key: {**base.get(key, {}), **value} if isinstance(value, dict) else value for key, value in sections.items()
    }
    return Spec.model_validate({**base, **merged})


def test_good_job_has_no_problem_and_no_warning(base: dict[str, Any], tmp_path: Path) -> None:
    found = validate(spec(base))
    assert found.warnings == ()
    assert found.not_looked_at == (
        "model: whether it can be trained; a run tries that before its workers start",
        "data: tokens; `fleetune data check` tries them on every record",
    )
    assert "data.train: all 3 records" in found.looked_at
    assert not (tmp_path / "runs").exists()


def test_problems_of_all_kinds_come_at_once(base: dict[str, Any]) -> None:
    bad = spec(
        base,
        train={"global_batch_size": 1, "max_steps": 5, "warmup_steps": 6},
        resources={"num_workers": 2},
        model={"path": "/no/model"},
        data={"train": "/no/data.jsonl"},
        eval={"metrics": ["losss"]},
    )
    with pytest.raises(InputError) as caught:
        validate(bad)
    for part in ("fewer rows", "longer than the run of 5", "/no/model", "/no/data.jsonl", "did you mean loss?"):
        assert part in str(caught.value)


def test_one_problem_keeps_its_class(base: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SpecError):
        validate(spec(base, train={"global_batch_size": 1}, resources={"num_workers": 2}))
    with pytest.raises(DataError):
        validate(spec(base, data={"eval": "/no/eval.jsonl"}))
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="is not writable"):
        validate(spec(base, storage_path=str(tmp_path / "file")))


def test_general_text_is_looked_at_and_refused_if_it_is_empty(base: dict[str, Any], tmp_path: Path) -> None:
    general = tmp_path / "general.txt"
    general.write_text("One line of text.\nAnother line.\n")
    found = validate(spec(base, eval={"general": str(general), "eval_steps": 2}))
    assert "eval.general: all 2 records" in found.looked_at and not found.warnings, "eval_steps has something to score"
    general.write_text("")
    with pytest.raises(DataError, match="holds no records") as caught:
        validate(spec(base, eval={"general": str(general)}))
    assert [one.field for one in caught.value.mistakes] == ["eval.general"]
    (tmp_path / "blank.jsonl").write_text('{"text": " "}\n')
    with pytest.raises(DataError, match="none of the first 1 records of"):
        validate(spec(base, eval={"general": str(tmp_path / "blank.jsonl")}))


def test_missing_column_is_refused(base: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="txt"):
        validate(spec(base, data={"columns": {"text": "txt"}}))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("f1", "f1 is for sequence-classification, but model.task is causal-lm"),
        ("perplexty", "did you mean perplexity?"),
        ("my_metric", "nor package.module:function"),
        ("no_such_module_here:f", "there is no module no_such_module_here"),
        ("no.such.module:f", "cannot find no.such.module"),
    ],
)
def test_metric_that_is_not_there_is_refused(base: dict[str, Any], name: str, expected: str) -> None:
    with pytest.raises(SpecError) as caught:
        check_metrics(spec(base, eval={"metrics": ["loss", name]}))
    assert expected in str(caught.value)


def test_language_metrics_are_refused_for_classification() -> None:
    values = {
        "model": {"path": "/m", "task": "sequence-classification"},
        "data": {"train": "/d", "format": "classification", "labels": ["a", "b"]},
        "eval": {"metrics": ["loss", "accuracy", "f1", "exact_match", "perplexity"]},
    }
    with pytest.raises(SpecError) as caught:
        check_metrics(Spec.model_validate(values))
    assert [line.split()[1] for line in str(caught.value).splitlines()] == ["exact_match", "perplexity"]


def test_own_metric_is_found_beside_the_working_directory_but_not_run(
    base: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "metrics_beside_it.py").write_text("raise SystemExit\ndef good(p): ...\nalso = good\n")
    monkeypatch.chdir(tmp_path)
    check_metrics(spec(base, eval={"metrics": ["metrics_beside_it:good", "metrics_beside_it:also"]}))
    with pytest.raises(SpecError, match=r"metrics_beside_it\.py has no goood; did you mean good\?"):
        check_metrics(spec(base, eval={"metrics": ["metrics_beside_it:goood"]}))


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"eval": {"metrics": ["loss", "accuracy"]}}, "asks for accuracy, but there are no held-out samples"),
        ({"eval": {"eval_steps": 5}}, "eval_steps is set, but there are no held-out samples"),
        ({"train": {"max_steps": 5}, "checkpoint": {"save_steps": 6}}, "save_steps (6) is more than max_steps (5)"),
        (
            {"train": {**STABLE, "warmup_ratio": 0.6, "decay_ratio": 0.6}},
            "warmup_ratio (0.6) + decay_ratio (0.6) > 1: the decay is shortened",
        ),
        (
            {"train": {**STABLE, "warmup_steps": 0.6, "decay_ratio": 0.6}},
            "the share of warmup_steps (0.6) + decay_ratio (0.6) > 1: the decay is shortened",
        ),
        (
            {"train": {**STABLE, "warmup_steps": 60, "max_steps": 100, "decay_ratio": 0.6}},
            "the share of warmup_steps (0.6) + decay_ratio (0.6) > 1: the decay is shortened",
        ),
        (
            {"train": {"decay_ratio": 0.3}},
            "train.decay_ratio (0.3) has no effect with lr_scheduler_type: linear. It is for warmup_stable_decay",
        ),
        (
            {"data": {"eval_fraction": 0.5}, "checkpoint": BEST},
            "load_best_model_at_end: without eval.eval_steps, only the first and the last state are scored",
        ),
        ({"model": {"chat_template": "{{ messages }}"}}, "model.chat_template has no effect: no data has the format"),
        (
            {"remedies": {"forgetting": {"action": "raise_replay"}}},
            "remedies.forgetting.action (raise_replay) has no effect without a bound",
        ),
        (
            {"resources": {"cpus_per_worker": 1}, "train": {"zero": {"offload_optimizer": "cpu"}}},
            "resources.cpus_per_worker (1) threads. Set it to 4 or more",
        ),
        (
            {"queue": {"max_runtime_s": 1}},
            "queue.max_runtime_s (1) is in seconds, and includes the start of the workers",
        ),
        ({"method": "lora"}, "train.learning_rate (2e-05) is unusual for method: lora. Its best rates are mostly"),
        ({"method": "prompt", "train": {"learning_rate": 1e-4}}, "is unusual for method: prompt"),
    ],
)
def test_allowed_but_odd_is_a_warning(base: dict[str, Any], sections: dict[str, Any], expected: str) -> None:
    (warning,) = validate(spec(base, **sections)).warnings
    assert expected in warning


def test_fp16_for_a_model_that_was_saved_in_bf16_is_a_warning(base: dict[str, Any], tmp_path: Path) -> None:
    in_fp16 = spec(base, train={"fp16": True})
    assert validate(in_fp16).warnings == ()
    for name in ("dtype", "torch_dtype"):
        (tmp_path / "m/config.json").write_text(json.dumps({"model_type": "llama", name: "bfloat16"}))
        (warning,) = validate(in_fp16).warnings
        assert "train.fp16: the model was saved in bfloat16. Its activations may be above 65,504" in warning
        assert validate(spec(base)).warnings == ()


def test_held_out_samples_that_are_trained_on_are_a_warning(base: dict[str, Any]) -> None:
    (warning,) = validate(spec(base, data={"eval": base["data"]["train"]})).warnings
    assert warning.startswith("data.eval: ") and "d.jsonl is also in data.train" in warning


def test_rows_beyond_the_positions_of_a_rotary_model_are_a_warning(base: dict[str, Any], tmp_path: Path) -> None:
    config: dict[str, Any] = {"model_type": "llama", "max_position_embeddings": 256, "rope_theta": 1e4}
    (tmp_path / "m/config.json").write_text(json.dumps(config))
    (warning,) = validate(spec(base)).warnings
    assert warning.startswith("data.seq_len (1024) is more than the 256 positions for which the model was made")
    assert validate(spec(base, data={"seq_len": 256})).warnings == ()

    config["rope_scaling"] = {"rope_type": "yarn", "factor": 8.0}
    (tmp_path / "m/config.json").write_text(json.dumps(config))
    assert validate(spec(base)).warnings == ()


def test_trials_of_a_sweep_may_vary_what_would_have_no_effect_in_a_run(base: dict[str, Any]) -> None:
    odd = spec(base, train={"decay_ratio": 0.3}, data={"eval_fraction": 0.5})
    assert validate(odd, judged="eval_loss").warnings == ()


def test_bad_rows_that_were_seen_are_refused_as_the_preparation_would(base: dict[str, Any], tmp_path: Path) -> None:
    rows = [{"text": f"row {number}"} for number in range(41)] + [{"text": ""}, {"text": None}]
    (tmp_path / "bad.jsonl").write_text("\n".join(map(json.dumps, rows)))
    bad = {"train": str(tmp_path / "bad.jsonl")}
    with pytest.raises(
        DataError, match=r"data\.train: 2 of 43 records cannot be used.*\n.*bad\.jsonl:42: 'text' is empty"
    ):
        validate(spec(base, data=bad))
    found = validate(spec(base, data={**bad, "max_bad_fraction": 0.05}))
    assert "2 of 43 records cannot be used: they will be set aside" in found.warnings[0]


def test_bad_rows_at_the_start_of_a_large_source_are_a_warning(base: dict[str, Any], tmp_path: Path) -> None:
    rows = [{"text": ""}] * 30 + [{"text": "a row like the others"}] * 30_000
    (tmp_path / "large.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = validate(spec(base, data={"train": str(tmp_path / "large.jsonl")}))
    assert "30 of the first 1,000 records cannot be used: at most 0.01 of all records" in found.warnings[0]
    assert "data.train: the first 1,000 records" in found.looked_at


def test_a_run_leaves_the_estimate_of_what_is_cut_to_the_preparation_of_its_data(
    base: dict[str, Any], tmp_path: Path
) -> None:
    words = Tokenizer(WordLevel({"word": 0}, unk_token="word"))
    words.pre_tokenizer = Whitespace()
    words.save(str(tmp_path / "m/tokenizer.json"))
    row = json.dumps({"text": "word " * 100, "label": 0})
    (tmp_path / "long.jsonl").write_text("\n".join([row] * 4))
    long = spec(
        base,
        model={"task": "sequence-classification", "num_labels": 2},
        data={"train": str(tmp_path / "long.jsonl"), "format": "classification", "seq_len": 32},
    )
    (warning,) = validate(long).warnings
    assert warning.startswith("data.seq_len (32) cuts 100% of the samples of data.train")
    assert validate(long, estimates=False).warnings == ()


@pytest.mark.parametrize("format", ["chat", "instruction"])
def test_what_a_chat_template_writes_is_not_estimated(base: dict[str, Any], tmp_path: Path, format: str) -> None:
    words = Tokenizer(WordLevel({"word": 0}, unk_token="word"))
    words.pre_tokenizer = Whitespace()
    words.save(str(tmp_path / "m/tokenizer.json"))
    (tmp_path / "m/chat_template.jinja").write_text("{{ messages }}")
    text = "word " * 100
    turns = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
    (tmp_path / "long.jsonl").write_text(json.dumps({"messages": turns, "instruction": text, "output": text}))
    found = validate(spec(base, data={"train": str(tmp_path / "long.jsonl"), "format": format, "seq_len": 32}))
    assert found.warnings == ()
    assert "data: tokens and chat template; `fleetune data check` tries them on every record" in found.not_looked_at


def test_a_split_without_samples_is_refused_as_the_preparation_would(base: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"data.eval_fraction \(0.001\) of 3 samples of .* leaves none for eval"
    ) as caught:
        validate(spec(base, data={"eval_fraction": 0.001}))
    assert [one.field for one in caught.value.mistakes] == ["data.eval_fraction"]
    (tmp_path / "d.jsonl").write_text("\n".join(json.dumps({"text": f"row {n}"}) for n in range(1100)))
    validate(spec(base, data={"eval_fraction": 1e-9}))
    (tmp_path / "d.jsonl").write_text("\n".join(json.dumps({"text": f"row {n}"}) for n in range(100)))
    validate(spec(base, data={"eval_fraction": 0.5}))


def test_a_model_of_the_hub_is_not_looked_at(base: dict[str, Any]) -> None:
    found = validate(spec(base, model={"path": "org/name"}))
    assert found.not_looked_at == (
        "model: org/name is not a directory beside the spec; whether the hub has it was not checked",
        "data: tokens; `fleetune data check` tries them on every record",
    )


@pytest.mark.skipif(has_gpus(), reason="this machine has a GPU")
def test_a_run_without_its_gpus_is_refused_before_anything_is_written(base: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CapacityError, match=r"this machine has no GPU.*--set resources\.gpus_per_worker=0"):
        run_on_ray(spec(base), progress=NoProgress())
    assert not (tmp_path / "runs").exists()
    assert no_gpu_here(spec(base, resources={"gpus_per_worker": 0})) is None
    assert "add `--set base.resources.gpus_per_worker=0`" in (no_gpu_here(spec(base), "base.") or "")
