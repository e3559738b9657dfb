"""From a user's file to a Spec, or to a message that helps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import SpecError
from jobs.spec.checking.fields import ABSENT, OTHER_NAMES, spec_fields
from jobs.spec.finetune import Spec
from jobs.spec.load import dump_spec, load_spec, spec_of

GOOD = """\
name: reviews
model: {path: ./m, task: causal-lm}
data:
  train: d.jsonl
  format: text
train:
  learning_rate: 1e-4
"""


def write(folder: Path, text: str, name: str = "job.yaml") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def message(path: str, *overrides: str) -> str:
    with pytest.raises(SpecError) as caught:
        load_spec(path, overrides)
    return str(caught.value).replace(str(Path(path).parent) + "/", "")


def lines(folder: Path, addition: str, *overrides: str) -> list[str]:
    return message(write(folder, GOOD + addition), *overrides).splitlines()


def test_float_without_a_dot_is_a_number_in_the_file_and_in_set(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    assert load_spec(path).train.learning_rate == 1e-4
    assert load_spec(path, ["train.learning_rate=3e-5"]).train.learning_rate == 3e-5
    assert load_spec(path, ["train.adam_epsilon=1E-6", "train.weight_decay=.5e-2"]).train.weight_decay == 0.005


def test_a_section_of_another_tool_is_named_though_a_column_has_its_name(tmp_path: Path) -> None:
    assert lines(tmp_path, "output: {dir: /r}\n") == ["job.yaml:8: output: unknown key; it is called storage_path here"]


def test_a_chat_template_is_read_from_its_file_or_stands_in_the_spec(tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text("{{ messages }}")
    path = write(tmp_path, GOOD)
    for template in ("own.jinja", "./own.jinja", str(tmp_path / "own.jinja"), "{{ messages }}"):
        spec = load_spec(path, [f"model.chat_template={json.dumps(template)}"])
        assert spec.model.chat_template == "{{ messages }}"
    assert spec_of(json.loads(dump_spec(spec))) == spec
    assert message(path, "model.chat_template=there.jinja").startswith("model.chat_template: cannot read there.jinja")
    (tmp_path / "own.jinja").write_bytes(b"\xff")
    assert "own.jinja is not UTF-8" in message(path, "model.chat_template=own.jinja")
    (tmp_path / "own.jinja").write_text("")
    assert "has 0 characters" in message(path, "model.chat_template=own.jinja")


def test_norwegian_labels_stay_text(tmp_path: Path) -> None:
    text = "model: {path: /m, task: sequence-classification}\n"
    text += "data: {train: d.csv, format: classification, labels: [no, yes, on, 1:30, 2026-01-01, 007]}\n"
    assert load_spec(write(tmp_path, text)).data.labels == ("no", "yes", "on", "1:30", "2026-01-01", "007")


def test_the_wrong_item_of_a_list_is_the_only_problem(tmp_path: Path) -> None:
    (line,) = lines(tmp_path, "", "data.labels=[0, 1]")
    assert line == "--set: data.labels.0: must be text (in quotes), but is 0"


def test_a_mapping_with_too_many_keys_is_named_and_not_checked(tmp_path: Path) -> None:
    command = "kind: command\ncommand: [x]\nenv: {" + ", ".join(f"v{number}: '1'" for number in range(1001)) + "}\n"
    told = message(write(tmp_path, command))
    assert told.endswith("job.yaml:3: env: has 1,001 keys, but at most 1,000 are allowed")


def test_set_reaches_fields_that_the_file_does_not_have(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path, GOOD), ["resources.num_workers=4", "train.zero.stage=2", "data.eval=null"])
    assert (spec.resources.num_workers, spec.train.zero.stage, spec.data.eval) == (4, 2, None)


def test_last_set_of_a_field_wins(tmp_path: Path) -> None:
    assert load_spec(write(tmp_path, GOOD), ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize("bad", ["seed", "=3", "train.=3", "--x"])
def test_set_without_key_and_value_is_refused(tmp_path: Path, bad: str) -> None:
    assert f"{bad!r} must be KEY=VALUE" in message(write(tmp_path, GOOD), bad)


def test_set_below_a_plain_value_is_refused(tmp_path: Path) -> None:
    assert message(write(tmp_path, GOOD), "name.x=1") == "--set: name.x=1: name is a value, not a section"


def test_set_reaches_the_entries_of_a_list(tmp_path: Path) -> None:
    sources = "data.train=[{path: /a.jsonl, weight: 1}, {path: /b.jsonl, weight: 2}]"
    spec = load_spec(write(tmp_path, GOOD), [sources, "data.train.1.weight=3"])
    assert [source.weight for source in spec.data.train] == [1, 3]
    assert message(write(tmp_path, GOOD), sources, "data.train.2.weight=3") == (
        "--set: data.train.2.weight=3: data.train is a list whose last entry has the number 1"
    )
    assert "data.train is an empty list" in message(write(tmp_path, GOOD), "data.train=[]", "data.train.0.weight=3")
    assert "data.train.0.weight: " in message(write(tmp_path, GOOD), sources, "data.train.0.weight=-1")


def test_section_with_everything_commented_out_is_an_empty_one(tmp_path: Path) -> None:
    assert load_spec(write(tmp_path, GOOD + "resources:\n  # num_workers: 2\n")).resources.num_workers == 1


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("lr", "it is called learning_rate here"),
        ("epochs", "it is called num_train_epochs here"),
        ("micro_batch_size", "it is called per_device_train_batch_size here"),
        ("grad_accum", "it is called gradient_accumulation_steps here"),
        ("clip", "it is called max_grad_norm here"),
        ("max_seq_length", "use data.seq_len"),
        ("num_gpus", "use resources.num_workers"),
        ("output_dir", "use storage_path"),
        ("Learning-Rate", "did you mean learning_rate?"),
        ("lerning_rate", "did you mean learning_rate?"),
        ("num_workers", "belongs under resources"),
        ("lora", "belongs under the top level"),
        ("lora_alpha", "use lora.alpha"),
        ("peft", "write method: lora"),
    ],
)
def test_unknown_key_says_what_was_meant(tmp_path: Path, key: str, meant: str) -> None:
    (line,) = lines(tmp_path, f"  {key}: 1\n")
    assert line.startswith(f"job.yaml:8: train.{key}: ") and meant in line


def test_key_at_the_wrong_level_says_where_it_belongs(tmp_path: Path) -> None:
    assert lines(tmp_path, "learning_rate: 1\n") == ["job.yaml:8: learning_rate: belongs under train"]


def test_dotted_key_in_the_file_is_explained(tmp_path: Path) -> None:
    (line,) = lines(tmp_path, "train.max_steps: 1\n")
    assert "write max_steps indented under train:" in line


def test_nonsense_key_lists_what_there_is(tmp_path: Path) -> None:
    (line,) = lines(tmp_path, "checkpoint: {qqq: 1}\n")
    assert line.endswith(
        "checkpoint has save_steps, save_minutes, save_total_limit, metric_for_best_model, greater_is_better, "
        "load_best_model_at_end"
    )


def test_key_that_is_a_required_one_under_another_name_is_one_problem(tmp_path: Path) -> None:
    text = GOOD.replace("path:", "model_name_or_path:")
    assert message(write(tmp_path, text)).splitlines() == [
        "job.yaml:2: model.model_name_or_path: unknown key; it is called path here"
    ]


def test_every_alias_leads_to_a_field_and_hides_none() -> None:
    others = [name for names in OTHER_NAMES.values() for name in names]
    assert set(OTHER_NAMES) <= set(spec_fields(Spec)) and len(set(others)) == len(others)
    assert not {name for name in others if name in spec_fields(Spec) and "." not in name}
    assert not set(ABSENT) & set(others)


def test_all_problems_come_at_once_in_the_order_of_lines(tmp_path: Path) -> None:
    found = lines(tmp_path, "  bf16: yes\n  lr: 3\n  max_steps: 2.5\nseed: -1\nmethod: qlora\n", "train.optim=adam")
    assert [line.split(": ")[0] for line in found] == ["--set", *(f"job.yaml:{number}" for number in range(8, 13))]


@pytest.mark.parametrize(
    ("addition", "expected"),
    [
        ("seed: abc\n", 'seed: must be a whole number, but is the text "abc"'),
        ("seed: -1\n", "seed: must be 0 or more, but is -1"),
        ("seed: true\n", "seed: must be a whole number, but is true"),
        ("  learning_rate: 2\n", None),
        ("  max_steps: [1]\n", "train.max_steps: must be a whole number, but is [1]"),
        ("  bf16: 1\n", "train.bf16: must be true or false, but is 1"),
        ("  weight_decay: .nan\n", "train.weight_decay: must be a finite number, but is NaN"),
        ("  zero: 3\n", "train.zero: must be a section with the keys stage,"),
        ("eval: {metrics: loss}\n", 'eval.metrics: must be a list (in square brackets), but is the text "loss"'),
        ("method: peft\n", 'method.kind: must be full, lora or prompt, but is "peft"; write method: lora'),
        ("method: lora\nlora: {rank: 0}\n", "lora.rank: must be 1 or more, but is 0"),
        ("method: lora\nlora: {dropout: 1.0}\n", "lora.dropout: must be less than 1.0, but is 1.0"),
        ("method: lora\nlora: {dropout: -0.1}\n", "lora.dropout: must be 0.0 or more, but is -0.1"),
        ("method: lora\nlora: {target_modules: []}\n", "lora.target_modules: must be a list of 1 or more"),
        ("method: lora\nlora: {lora_alpha: 8}\n", "lora.lora_alpha: unknown key; it is called alpha here"),
        ("lora: {rank: 4}\n", "lora is given, but method is full: set method: lora, or leave lora out"),
        ("lora: {rank: 16}\n", "lora is given, but method is full: set method: lora, or leave lora out"),
        ("method: lora\nprompt: {num_virtual_tokens: 4}\n", "prompt is given, but method is lora"),
        ("  lr_scheduler_type: cosin\n", 'but is "cosin"; did you mean cosine?'),
        ("  warmup_ratio: 0.1\n  warmup_steps: 3\n", "warmup_ratio and warmup_steps are both given"),
    ],
)
def test_wrong_value_is_said_in_plain_words(tmp_path: Path, addition: str, expected: str | None) -> None:
    found = "\n".join(lines(tmp_path, addition))
    assert (expected or "is given twice (first at job.yaml:7)") in found.replace(str(tmp_path) + "/", "")
    assert not any(jargon in found for jargon in ("pydantic", "Input should", "http", "validation error"))


def test_missing_section_names_what_it_needs(tmp_path: Path) -> None:
    assert message(write(tmp_path, "seed: 1\n")).splitlines() == [
        "job.yaml: model: is missing. The model to start from. It needs path and task.",
        "job.yaml: data: is missing. The samples. It needs train and format.",
    ]


def test_contradicting_sections_are_refused_in_one_sentence(tmp_path: Path) -> None:
    assert "sequence-classification goes with classification" in message(
        write(tmp_path, GOOD), "model.task=sequence-classification"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: b: c\n", "job.yaml:1:5: not YAML"),
        ("a:\n\tb: c\n", "job.yaml:2:1: a tab cannot indent YAML"),
        ("a:\n   b: c\n  d: e\n", "job.yaml:3:3: not YAML: the indentation"),
        ("a: [1, 2\nb: 3\n", "job.yaml:2:2: not YAML"),
        ("a: 1\n---\nb: 2\n", "a second YAML document"),
        ("a: &x [*x]\n", "job.yaml:1: an alias that contains itself"),
        ("a: !!python/object:os.system x\n", "has no meaning here"),
        ("", "job.yaml: is empty"),
        ("- a\n", "job.yaml: is not a mapping"),
    ],
)
def test_broken_yaml_is_placed(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in message(write(tmp_path, text))


def test_broken_json_is_placed(tmp_path: Path) -> None:
    assert "job.json:2:1: not JSON" in message(write(tmp_path, '{"a": 1,\n}', "job.json"))


def test_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_bytes(b"\xff\xfe\x00")
    assert "is not UTF-8 text (invalid start byte at byte 0): give the YAML" in message(str(tmp_path / "job.yaml"))


def test_missing_file_suggests_the_one_beside(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    assert "did you mean job.yaml?" in message(str(tmp_path / "jib.yaml"))
    assert "is a directory" in message(str(tmp_path))


def test_newer_version_is_refused_by_name_and_alone(tmp_path: Path) -> None:
    assert lines(tmp_path, "version: 2\nbrand_new: 1\n") == [
        "job.yaml:8: version: written for schema version 2; this release reads 1: upgrade it"
    ]


def test_relative_paths_are_relative_to_the_file_and_urls_stay(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path, GOOD), ["data.eval=../e.jsonl", "storage_path=s3://b/runs"])
    assert spec.model.path == str(tmp_path / "m") and spec.data.train[0].path == str(tmp_path / "d.jsonl")
    assert spec.data.eval is not None
    assert spec.data.eval[0].path == str(tmp_path.parent / "e.jsonl") and spec.storage_path == "s3://b/runs"
    assert load_spec(write(tmp_path, GOOD)).storage_path == str(tmp_path / "runs")


def test_spec_given_by_a_relative_name_yields_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, GOOD)
    monkeypatch.chdir(tmp_path)
    assert load_spec("job.yaml").data.train[0].path == str(tmp_path / "d.jsonl")


@pytest.mark.parametrize(
    ("path", "is_local"), [("org/name", False), ("gpt2", False), ("here", True), ("a/b/c", True), ("~/m", True)]
)
def test_model_path_is_a_directory_or_a_hub_id(tmp_path: Path, path: str, is_local: bool) -> None:
    (tmp_path / "here").mkdir()
    found = load_spec(write(tmp_path, GOOD), [f"model.path={path}"]).model.path
    assert found.startswith("/") if is_local else found == path


def test_a_spec_given_as_a_file_url_has_the_same_paths(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    path = write(tmp_path, GOOD.replace("./m", "m") + "working_dir: code\n")
    assert load_spec(f"file://{path}") == load_spec(path) and load_spec(path).model.path == str(tmp_path / "m")


def test_relative_storage_inside_rays_package_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    folder.mkdir(parents=True)
    path = write(folder, GOOD)
    assert "--set storage_path=/shared/runs" in message(path)
    assert load_spec(path, ["storage_path=/shared/runs"]).storage_path == "/shared/runs"


def test_saved_spec_reruns_the_same_job(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path, GOOD), ["train.max_steps=7", "eval.metrics=[loss, a.b:c]"])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "spec.json").write_bytes(dump_spec(spec))
    assert load_spec(str(elsewhere / "spec.json")) == spec


@settings(deadline=None, max_examples=50)  # a shared machine has no deadlines
@given(
    rate=st.floats(1e-12, 1.0),
    workers=st.integers(1, 65_536),
    seed=st.integers(0, 2**63 - 1),
    label=st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).map(str.strip),
)
def test_any_spec_survives_the_way_through_json(
    tmp_path_factory: pytest.TempPathFactory, rate: float, workers: int, seed: int, label: str
) -> None:
    values: dict[str, Any] = {
        "model": {"path": "/m", "task": "sequence-classification"},
        "data": {"train": "/d.csv", "format": "classification", "labels": (label, label + "x")},
        "train": {"learning_rate": rate},
        "resources": {"num_workers": workers},
        "seed": seed,
        "storage_path": "/runs",
    }
    spec = Spec.model_validate(values)
    path = tmp_path_factory.getbasetemp() / "spec.json"
    path.write_bytes(dump_spec(spec))
    assert load_spec(str(path)) == spec


@settings(deadline=None, max_examples=50)  # a shared machine has no deadlines
@given(st.text(max_size=60))
def test_no_text_escapes_as_anything_but_a_spec_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(SpecError):
        load_spec(str(path))


@settings(deadline=None, max_examples=50)  # a shared machine has no deadlines
@given(st.text(max_size=30))
def test_no_set_escapes_as_anything_but_a_spec_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "good.yaml"
    path.write_text(GOOD)
    with pytest.raises(SpecError):
        load_spec(str(path), [f"train.zero.stage=_{text}"])


def test_values_are_read_as_pyyaml_reads_them_where_yaml_has_no_surprises(tmp_path: Path) -> None:
    text = (
        "model: {path: /m, task: causal-lm}\ndata: {train: /d, format: text, packing: false, seq_len: 1_024}\nseed: 7"
    )
    plain = yaml.safe_load(text)
    spec = load_spec(write(tmp_path, text))
    assert (spec.data.packing, spec.data.seq_len, spec.seed) == (False, plain["data"]["seq_len"], plain["seed"])


def test_a_data_file_is_not_taken_for_a_spec(tmp_path: Path) -> None:
    (tmp_path / "mails.csv").write_text("text,label\n")
    with pytest.raises(SpecError, match=r"mails\.csv is a data file, not a spec"):
        load_spec(str(tmp_path / "mails.csv"))


def test_a_method_is_named_and_has_its_section(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path, GOOD), ["method=lora", "lora.target_modules=q_proj", "lora.rank=4"])
    assert (spec.method.kind, spec.lora.rank, spec.lora.target_modules) == ("lora", 4, ("q_proj",))
    assert spec_of(json.loads(dump_spec(spec))) == spec
    assert load_spec(write(tmp_path, GOOD + "method: {kind: prompt}\n")).method.kind == "prompt"


def test_a_trained_prompt_precedes_each_sample_so_rows_are_not_packed(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    assert [load_spec(path, [f"method={kind}"]).packed for kind in ("full", "lora", "prompt")] == [True, True, False]
