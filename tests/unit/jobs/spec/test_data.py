"""The section `data` of a spec: sources as people write them, what is refused, and what a run may change in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import orchestrator.cli.app as cli
from cluster.errors import SpecError
from jobs.run.resume import differences
from jobs.spec.checking.fields import spec_fields
from jobs.spec.data import BUILTIN_FORMATS, Columns, Source, format_source, numbered
from jobs.spec.finetune import Spec
from jobs.spec.load import dump_spec, load_spec

HEAD = "name: mix\nmodel: {path: ./m, task: causal-lm}\ndata:\n  format: text\n"


def write(folder: Path, data: str, name: str = "job.yaml") -> str:
    """A spec whose section `data` has format text in line 4, and `data` from line 5 on."""
    (folder / name).write_text(HEAD + data)
    return str(folder / name)


def loaded(folder: Path, data: str, *overrides: str) -> Spec:
    return load_spec(write(folder, data), overrides)


def refused(folder: Path, data: str, *overrides: str) -> list[str]:
    """The lines of the message, without the folder."""
    with pytest.raises(SpecError) as caught:
        loaded(folder, data, *overrides)
    return str(caught.value).replace(f"{folder}/", "").splitlines()


def spec_of(train: Any, **data: Any) -> Spec:
    classify = data.get("format") == "classification"
    model = {"path": "/m", "task": "sequence-classification" if classify else "causal-lm"}
    values = {"model": model, "data": {"format": "text", "train": train} | data, "storage_path": "/runs"}
    return Spec.model_validate(values)


TWO = [{"path": "/a.jsonl", "weight": 0.25}, {"path": "/b.jsonl", "weight": 0.75}]


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ("a.jsonl", [{"path": "a.jsonl"}]),
        ("[a.jsonl, b.csv]", [{"path": "a.jsonl"}, {"path": "b.csv"}]),
        ("{path: a.jsonl}", [{"path": "a.jsonl"}]),
        ("[{path: a.jsonl}, b.csv]", [{"path": "a.jsonl"}, {"path": "b.csv"}]),
        ("[{path: a.jsonl, weight: 1}]", [{"path": "a.jsonl", "weight": 1.0}]),
        (
            "[{path: a, weight: 2, max_epochs: 1.5}, {path: b, weight: 1e-3}]",
            [{"path": "a", "weight": 2.0, "max_epochs": 1.5}, {"path": "b", "weight": 0.001}],
        ),
        ("[{path: a, format: chat}, b]", [{"path": "a", "format": "chat"}, {"path": "b"}]),
        ("[{path: a, columns: {text: body}}]", [{"path": "a", "columns": Columns(text="body")}]),
        ("[a, a]", [{"path": "a"}, {"path": "a"}]),
    ],
)
def test_sources_are_a_path_a_mapping_or_a_list_of_both(
    tmp_path: Path, train: str, expected: list[dict[str, Any]]
) -> None:
    want = tuple(Source(**{**source, "path": str(tmp_path / source["path"])}) for source in expected)
    assert loaded(tmp_path, f"  train: {train}\n").data.train == want
    held = [{key: value for key, value in one.items() if key not in ("weight", "max_epochs")} for one in expected]
    text = json.dumps([{**one, "columns": {"text": "body"}} if "columns" in one else one for one in held])
    found = loaded(tmp_path, f"  train: x\n  eval: {text}\n").data.eval
    assert found == tuple(source.model_copy(update={"weight": None, "max_epochs": None}) for source in want)


def test_a_list_of_lines_is_a_list_of_sources(tmp_path: Path) -> None:
    spec = loaded(tmp_path, "  train:\n    - path: a\n      weight: 1\n    - path: b\n      weight: 3\n")
    assert [source.weight for source in spec.data.train] == [1.0, 3.0]
    assert spec.data.mixed and not spec_of(["/a", "/b"]).data.mixed


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("  train: [{path: a, weight: 1}, b]\n", "train: b has no weight, but others do: give every source a weight"),
        ("  train: [a, {path: b, weight: 1}]\n", "train: a has no weight"),
        ("  train: [{path: a, max_epochs: 2}]\n", "train: max_epochs needs a weight for every source"),
        ("  train: [{path: a, max_epochs: 2}, b]\n", "train: max_epochs needs a weight for every source"),
        ("  train: x\n  eval: [{path: a, weight: 1}]\n", "eval: weight and max_epochs are for train"),
        ("  train: x\n  eval: {path: a, max_epochs: 1}\n", "eval: weight and max_epochs are for train"),
        ("  train: x\n  eval: a\n  eval_fraction: 0.1\n", "eval and eval_fraction are both given"),
    ],
)
def test_weights_are_for_all_sources_of_train_or_for_none(tmp_path: Path, data: str, expected: str) -> None:
    (line,) = refused(tmp_path, data)
    assert line.startswith(f"job.yaml:3: data: {expected}")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("  train:\n    - path: a\n      wieght: 2\n", [(7, "data.train.0.wieght: unknown key; did you mean weight?")]),
        (
            "  train:\n    - b\n    - {path: a,\n       max_epoch: 2,\n       weights: 1}\n",
            [
                (8, "data.train.1.max_epoch: unknown key; did you mean max_epochs?"),
                (9, "data.train.1.weights: unknown key; did you mean weight?"),
            ],
        ),
        (
            "  train: x\n  eval:\n  - path: a\n    split: test\n",
            [(8, "data.eval.0.split: unknown key; a source has path, weight, max_epochs, replay, format, columns")],
        ),
        ("  train: x\n  eval:\n    path: a\n    split: test\n", [(8, "split: unknown key; a source has path, weight")]),
        (
            "  train:\n    path: a\n    columns:\n      txt: body\n",
            [(8, "columns.txt: unknown key; did you mean text?")],
        ),
        ("  train:\n    path: a\n    weight: 0\n", [(7, "weight: must be greater than 0.0, but is 0")]),
        (
            "  train: [{path: a, columns: {txt: b}}]\n",
            [(5, "data.train.0.columns.txt: unknown key; did you mean text?")],
        ),
        ("  train: [{weight: 1}]\n", [(5, "data.train.0.path: is missing.")]),
        ("  train: [{path: a, weight: x}]\n", [(5, 'data.train.0.weight: must be a number, but is the text "x"')]),
        ("  train: [{path: a, weight: true}]\n", [(5, "data.train.0.weight: must be a number, but is true")]),
        ("  train: [{path: a, weight: .inf}]\n", [(5, "data.train.0.weight: must be a finite number")]),
        ("  train: [{path: a, weight: .nan}]\n", [(5, "data.train.0.weight: must be a finite number")]),
        ("  train: [{path: '', weight: 1}]\n", [(5, "data.train.0.path: must be some text, but is empty")]),
        ("  train: ['']\n", [(5, "data.train.0.path: must be some text, but is empty")]),
        ("  train: []\n", [(5, "data.train: must be a list of 1 or more, but is []")]),
        ("  train:\n", [(5, "data.train: must be ")]),
        ("  train: x\n  loss_on: both\n", [(6, 'data.loss_on: must be completion or all, but is "both"')]),
        ("  train: x\n  max_bad_fraction: 1\n", [(6, "data.max_bad_fraction: must be less than 1.0, but is 1")]),
    ],
)
def test_mistake_in_a_source_is_told_with_its_line(tmp_path: Path, data: str, expected: list[tuple[int, str]]) -> None:
    found = refused(tmp_path, data)
    assert len(found) == len(expected)
    for line, (number, said) in zip(found, expected, strict=True):
        assert line.startswith(f"job.yaml:{number}: ") and said in line, line


@pytest.mark.parametrize("train", ["3", "[3]", "[[a]]", "[null]", "{path: a, columns: body}"])
def test_what_is_no_source_is_told_what_one_is(tmp_path: Path, train: str) -> None:
    (line,) = refused(tmp_path, f"  train: {train}\n")
    assert line.startswith("job.yaml:5: data.train") and "()" not in line
    assert any(word in line for word in ("path", "list", "messages")), line


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("tetx", "text"), ("Chat", "chat"), ("prompt_completion", "prompt-completion"), ("instructions", "instruction"),
        ("classify", "classification"), ("INSTRUCTION", "instruction"),
    ],
)  # fmt: skip
def test_unknown_format_names_the_nearest(tmp_path: Path, name: str, meant: str) -> None:
    for data in (f"  train: [{{path: a, format: {name}}}]\n", f"  train: x\n  eval: {{path: a, format: {name}}}\n"):
        (line,) = refused(tmp_path, data)
        assert line.endswith(f"but is {name!r}; did you mean {meant}?") and ", ".join(BUILTIN_FORMATS) in line
    (line,) = refused(tmp_path, "  train: x\n", f"data.format={name}")
    assert line.endswith(f"did you mean {meant}?")


def test_unknown_format_is_told_with_its_line(tmp_path: Path) -> None:
    in_train = "  train:\n    - path: a\n      format: tetx\n"
    for line, data in ((7, in_train), (8, in_train.replace("train", "eval").replace("  eval", "  train: x\n  eval"))):
        (found,) = refused(tmp_path, data)
        assert found.startswith(f"job.yaml:{line}: ")


@pytest.mark.parametrize("name", ["module:function", "package.module:function", "a.b_2.c:f3", "_p:_f"])
def test_function_of_the_user_s_own_is_a_format(tmp_path: Path, name: str) -> None:
    spec = loaded(tmp_path, f"  train: [{{path: a, format: '{name}'}}, b]\n")
    assert [spec.data.format_of(source) for source in spec.data.train] == [name, "text"]
    assert loaded(tmp_path, "  train: a\n", f"data.format={name}").data.format == name
    assert spec_of("/a", format=name).formats == {name}


@pytest.mark.parametrize(
    "name", ["a.b", "a/b.py:f", "a:b:c", "a:", ":f", "a..b:f", "1a:f", "a.b:f()", "a b:f", "", "."]
)
def test_what_is_no_function_is_no_format(tmp_path: Path, name: str) -> None:
    (line,) = refused(tmp_path, f"  train: [{{path: a, format: {json.dumps(name)}}}]\n")
    assert "or package.module:function" in line and repr(name) in line


def test_source_has_its_own_format_and_columns_or_those_of_all(tmp_path: Path) -> None:
    data = (
        "  columns: {text: body}\n"
        "  train: [{path: a, format: chat, columns: {messages: talk}}, {path: b, columns: {text: said}}, c]\n"
        "  eval: [{path: d, format: instruction}]\n"
    )
    whole = loaded(tmp_path, data)
    spec = whole.data
    assert [spec.format_of(source) for source in spec.train] == ["chat", "text", "text"]
    assert [spec.columns_of(source).text for source in spec.train] == ["text", "said", "body"]
    assert spec.columns_of(spec.train[0]).messages == "talk"
    assert whole.formats == {"chat", "text", "instruction"}


@pytest.mark.parametrize(
    ("task", "data_format", "own"),
    [("causal-lm", "text", "classification"), ("sequence-classification", "classification", "chat")],
)
@pytest.mark.parametrize("role", ["train", "eval"])
def test_single_source_whose_format_is_of_the_other_task_is_named(
    tmp_path: Path, task: str, data_format: str, own: str, role: str
) -> None:
    sources = {"train": "[x]", role: f"[x, {{path: odd.jsonl, format: {own}}}]"}
    labels = "  labels: [a, b]\n" if task != "causal-lm" else ""
    data = "".join(f"  {name}: {value}\n" for name, value in sources.items()) + labels
    (line,) = refused(tmp_path, data, f"model.task={task}", f"data.format={data_format}")
    assert f"model.task is {task}" in line and own in line
    assert "odd.jsonl" in line or f"data.{role}" in line  # data.format is right, the source's own is not
    assert f"data.format is {own}" not in line


def test_formats_of_one_task_may_be_mixed() -> None:
    train = [
        {"path": f"/{name}", "format": name} for name in ("text", "chat", "prompt-completion", "instruction", "a:b")
    ]
    assert len(spec_of(train).formats) == 5
    assert spec_of([{"path": "/a", "format": "a:b"}, "/b"], format="classification", labels=["x", "y"]).num_labels == 2


def test_paths_of_sources_are_relative_to_the_file_and_urls_stay(tmp_path: Path) -> None:
    data = "  train: [a.jsonl, ./d/*.csv, {path: ../e, format: chat}, /f, 's3://b/g', ~/h]\n  eval: [{path: i}, 's3://b/j']\n"
    spec = loaded(tmp_path, data).data
    here, up = str(tmp_path), str(tmp_path.parent)
    home = str(Path("~/h").expanduser())
    assert [source.path for source in spec.train] == [
        f"{here}/a.jsonl",
        f"{here}/d/*.csv",
        f"{up}/e",
        "/f",
        "s3://b/g",
        home,
    ]
    assert spec.train[2].format == "chat"
    assert spec.eval is not None and [source.path for source in spec.eval] == [f"{here}/i", "s3://b/j"]


def test_general_text_has_format_text_unless_it_has_another(tmp_path: Path) -> None:
    data = "  train: a\neval:\n  general: [g.jsonl, {path: h, format: chat}]\n"
    spec = loaded(tmp_path, data)
    assert spec.eval.general == (
        Source(path=str(tmp_path / "g.jsonl"), format="text"),
        Source(path=str(tmp_path / "h"), format="chat"),
    )
    named = [(name, source.format) for name, source in numbered(spec.sources)]
    assert named == [("data.train", None), ("eval.general[0]", "text"), ("eval.general[1]", "chat")]
    single = loaded(tmp_path, "  train: a\neval: {general: g}\n")
    assert [name for name, _ in numbered(single.sources)] == ["data.train", "eval.general"]


def test_general_text_has_no_weight(tmp_path: Path) -> None:
    (line,) = refused(tmp_path, "  train: a\neval:\n  general: {path: g, weight: 2}\n")
    assert "weight and max_epochs are for data.train" in line


def test_set_replaces_all_sources_or_changes_a_single_one(tmp_path: Path) -> None:
    data = "  train: {path: a, weight: 1}\n"
    spec = loaded(tmp_path, data, "data.train=[b, {path: ../c, format: chat}]", "data.eval=/e")
    assert [source.path for source in spec.data.train] == [str(tmp_path / "b"), str(tmp_path.parent / "c")]
    assert spec.data.eval == (Source(path="/e"),)
    spec = loaded(tmp_path, data, "data.train=[{path: /b, weight: 1, max_epochs: 3}, {path: /c, weight: 2}]")
    assert [(source.weight, source.max_epochs) for source in spec.data.train] == [(1.0, 3.0), (2.0, None)]
    assert loaded(tmp_path, data, "data.train.weight=5").data.train[0].weight == 5.0
    assert loaded(tmp_path, data, "data.train=x", "data.loss_on=all", "data.max_bad_fraction=0").data.loss_on == "all"
    (line,) = refused(tmp_path, data, "data.train=[{path: b, wieght: 1}]")
    assert line == "--set: data.train.0.wieght: unknown key; did you mean weight?"


def test_run_goes_on_where_its_sources_have_moved() -> None:
    moved = [{**source, "path": f"s3://b{source['path']}"} for source in TWO]
    assert differences(spec_of(TWO), spec_of(moved)) == []
    assert differences(spec_of("/a", eval=["/e", "/f"]), spec_of("/moved/a", eval=["/g", "/h"])) == []
    assert differences(spec_of("/a"), spec_of([{"path": "/b"}])) == []
    assert differences(spec_of("/a", max_bad_fraction=0.5), spec_of("/a")) == []


MIX = "/a.jsonl (weight 0.25), /b.jsonl (weight 0.75)"


@pytest.mark.parametrize(
    ("before", "now", "line"),
    [
        (TWO, [TWO[0], {**TWO[1], "weight": 0.5}], f"{MIX} -> /a.jsonl (weight 0.25), /b.jsonl (weight 0.5)"),
        (TWO[:1], [{**TWO[0], "max_epochs": 2}], "/a.jsonl (weight 0.25) -> /a.jsonl (weight 0.25, max_epochs 2)"),
        (["/a", "/b"], ["/a"], "/a, /b -> /a"),
        ("/a", {"path": "/a", "weight": 1}, "/a -> /a (weight 1)"),
        (["/a"], [{"path": "/a", "format": "chat"}], "/a -> /a (format chat)"),
    ],
)
def test_run_does_not_go_on_with_other_sources(before: Any, now: Any, line: str) -> None:
    assert differences(spec_of(before), spec_of(now)) == [f"data.train: {line}"]


def test_changed_columns_of_a_source_are_told_apart() -> None:
    one, two = ({"path": "/a", "columns": {"text": name}} for name in ("body", "said"))
    (line,) = differences(spec_of([one]), spec_of([two]))
    before, _, now = line.removeprefix("data.train: ").partition(" -> ")
    assert before != now


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [
        ("loss_on", "all", "data.loss_on: completion -> all"),
        ("format", "chat", "data.format: text -> chat"),
        ("columns", {"prompt": "q"}, "data.columns.prompt: prompt -> q"),
        ("eval", "/e", "data.eval: null -> /e"),
    ],
)
def test_run_does_not_go_on_with_another_reading(field: str, value: Any, line: str) -> None:
    assert differences(spec_of("/a"), spec_of("/a", **{field: value})) == [line]


def test_source_is_said_in_one_line() -> None:
    source = Source(path="general.jsonl", weight=0.2, max_epochs=2, format="chat", columns=Columns(messages="talk"))
    assert format_source(source).startswith("general.jsonl (weight 0.2, max_epochs 2, format chat, ")
    assert format_source(Source(path="general.txt", weight=0.2, replay=True)) == "general.txt (weight 0.2, replay)"
    assert format_source(Source(path="a")) == "a"


def test_saved_spec_with_sources_is_the_same_again(tmp_path: Path) -> None:
    spec = loaded(
        tmp_path,
        "  train:\n  - {path: a, weight: 1, max_epochs: 0.5, format: chat, columns: {messages: talk}}\n"
        "  - {path: b, weight: 0.1}\n"
        "  eval: [c, {path: d, format: 'my.own:reader'}]\n  loss_on: all\n  max_bad_fraction: 0.25\n",
    )  # fmt: skip
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "spec.json").write_bytes(dump_spec(spec))
    again = load_spec(str(elsewhere / "spec.json"))
    assert again == spec and dump_spec(again) == dump_spec(spec) and differences(spec, again) == []


def test_spec_json_of_the_release_before_is_the_same_run(tmp_path: Path) -> None:
    now = spec_of("/d/train.jsonl", eval="/d/eval.jsonl")
    old = json.loads(dump_spec(now))
    old["data"] = {
        "train": "/d/train.jsonl", "eval": "/d/eval.jsonl", "eval_fraction": None, "format": "text",
        "columns": {"text": "text", "label": "label", "messages": "messages"}, "labels": None, "seq_len": 1024,
        "packing": True,
    }  # fmt: skip
    (tmp_path / "spec.json").write_text(json.dumps(old, indent=1))
    spec = load_spec(str(tmp_path / "spec.json"))
    assert spec == now and differences(spec, now) == []


def test_reference_tells_what_a_source_is_in_plain_words() -> None:
    printed = CliRunner().invoke(cli.app, ["spec"]).stdout
    assert "  train: list of sources; (*)\n" in printed and "  eval: list of sources; default none\n" in printed
    for name in Source.model_fields:
        assert name in (spec_fields(Spec)["data.train"].description or "") or name == "path"
    assert '  loss_on: one of completion, all; default "completion"\n' in printed
    assert "  max_bad_fraction: number; >= 0.0; < 1.0; default 0.01\n" in printed
    assert all(f'    {name}: text; default "{name}"\n' in printed for name in Columns.model_fields)
    assert not any(
        jargon in printed for jargon in ("Annotated", "Validator", "jobs.", "NoneType", "FieldInfo", "class ")
    )
    schema = json.loads(CliRunner().invoke(cli.app, ["spec", "--json-schema"]).stdout)
    assert set(schema["$defs"]["Source"]["properties"]) == set(Source.model_fields)
