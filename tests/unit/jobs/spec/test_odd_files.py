"""Files with values that YAML, JSON or UTF-8 cannot have give a message, and in a short time."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import SpecError
from jobs.spec.load import load_spec, spec_of

JOB: dict[str, Any] = {
    "model": {"path": "/m", "task": "causal-lm"},
    "data": {"train": "/d", "format": "text"},
    "storage_path": "/runs",
}


def message(path: Path, text: str, *overrides: str) -> str:
    path.write_text(text)
    with pytest.raises(SpecError) as caught:
        load_spec(str(path), overrides)
    return str(caught.value).replace(f"{path.parent}/", "")


@pytest.mark.parametrize(
    ("value", "tag"), [('!!int "x"', "int"), ('!!float "x"', "float"), ('!!bool "x"', "bool"), ('!!null "x"', "null")]
)
def test_a_value_that_does_not_fit_its_tag_is_refused(tmp_path: Path, value: str, tag: str) -> None:
    said = message(tmp_path / "job.yaml", f"{json.dumps(JOB)[:-1]},\nseed: {value}}}")
    assert f'job.yaml:2: "x" does not fit its YAML tag tag:yaml.org,2002:{tag}' in said
    assert '"x" does not fit' in message(tmp_path / "job.yaml", json.dumps(JOB), f"seed={value}")


def test_a_value_that_fits_its_tag_is_read(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(json.dumps(JOB))
    changes = ["seed=!!int '7'", "train.learning_rate=!!float 1", "train.bf16=!!bool 'true'", "data.eval=!!null ''"]
    spec = load_spec(str(tmp_path / "job.yaml"), changes)
    assert (spec.seed, spec.train.learning_rate, spec.train.bf16, spec.data.eval) == (7, 1.0, True, None)


def test_a_number_with_thousands_of_digits_is_refused(tmp_path: Path) -> None:
    text = f'{json.dumps(JOB)[:-1]}, "seed": {"9" * 5000}}}'
    assert (
        message(tmp_path / "job.json", text) == "job.json: cannot be read: it has a whole number of thousands of digits"
    )


@pytest.mark.parametrize("name", ["job.json", "job.yaml"])
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": "a\ud800"}, "name: has half of a character ('\\ud800'): write the whole character"),
        ({"kind": "\ud800"}, "kind: has half of a character"),
        ({"data": {"train": ["a", "\udfff"], "format": "text"}}, "data.train.1: has half of a character ('\\udfff')"),
        ({"queue": {"labels": {"\ud800": "x"}}}, "queue.labels: has a key with half of a character"),
        ({"\ud800": 1}, "has a key with half of a character"),
    ],
)
def test_half_of_a_character_is_named_with_its_field(
    tmp_path: Path, name: str, fields: dict[str, Any], said: str
) -> None:
    (line,) = message(tmp_path / name, json.dumps({**JOB, **fields})).splitlines()
    assert said in line and line.startswith(name)
    with pytest.raises(SpecError) as caught:
        spec_of({**JOB, **fields})
    assert said in str(caught.value)


@pytest.mark.parametrize("name", ["job.json", "job.yaml"])
def test_a_byte_order_mark_is_left_out(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + json.dumps(JOB).encode())
    assert load_spec(str(tmp_path / name)).model.path == "/m"


def test_aliases_that_repeat_without_measure_are_refused(tmp_path: Path) -> None:
    names = ["a", "b", "c", "d", "e", "f", "g", "h", "i"]
    rows = [f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]" for before, name in itertools.pairwise(names)]
    said = message(tmp_path / "job.yaml", "\n".join(["a: &a [x, x, x, x, x, x, x, x, x]", *rows]))
    assert said == "job.yaml: its aliases repeat more than 100,000 values: use fewer aliases"


def test_aliases_that_nest_deeply_are_refused(tmp_path: Path) -> None:
    rows = [f"a{number}: &a{number} [*a{number - 1}]" for number in range(1, 1200)]
    assert message(tmp_path / "job.yaml", "\n".join(["a0: &a0 [x]", *rows])) == "job.yaml: nested too deeply"


def test_a_few_aliases_are_read(tmp_path: Path) -> None:
    text = "model: {path: /m, task: causal-lm}\ndata: {train: &rows [/a, /b], eval: *rows, format: text}\n"
    (tmp_path / "job.yaml").write_text(text)
    assert [one.path for one in load_spec(str(tmp_path / "job.yaml")).data.eval or ()] == ["/a", "/b"]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("caf\udce9.csv", "it has the byte 0xe9, which is not UTF-8 text. Rename a file with such a name"),
        ("a\x07", "it has the character '\\x07'"),
    ],
)
def test_a_set_value_with_a_wrong_character_shows_it(tmp_path: Path, value: str, said: str) -> None:
    assert message(tmp_path / "job.yaml", json.dumps(JOB), f"data.train={value}").endswith(f"this is not YAML: {said}")


def test_a_tag_of_a_mapping_or_a_list_is_refused_as_that_of_a_value(tmp_path: Path) -> None:
    text = "model: !hf {path: /m, task: causal-lm}\ndata: {train: !glob [/d], format: !x text}\n"
    said = [line.partition("the YAML tag ")[2] for line in message(tmp_path / "job.yaml", text).splitlines()]
    assert [line.split()[0] for line in said if line] == ["!hf", "!glob", "!x"]


def test_a_spec_with_a_base_and_no_kind_says_which(tmp_path: Path) -> None:
    for more, kind in (("space: {learning_rate: [1e-5]}", "sweep"), ("methods: [full, lora]", "compare")):
        said = message(tmp_path / "job.yaml", f"base: {{model: {{path: /m}}}}\n{more}\n")
        assert said.endswith(f"kind: is missing: a spec with a base needs kind: {kind}")


@pytest.mark.parametrize("path", ["-", "/dev/null", "/dev/stdin"])
def test_a_stream_is_no_spec(path: str) -> None:
    if path == "/dev/stdin":
        read, write = os.pipe()
        path = f"/dev/fd/{read}"
        os.close(write)
    with pytest.raises(SpecError, match="a spec is read from a file"):
        load_spec(path)


def test_an_empty_path_is_no_spec_and_a_path_object_is() -> None:
    with pytest.raises(SpecError, match="is empty: is a shell variable not set"):
        load_spec(" ")
    with pytest.raises(SpecError, match=r"cannot read .*none\.yaml"):
        load_spec(Path("/none.yaml"))  # type: ignore[arg-type]


def test_a_template_that_is_neither_a_file_nor_jinja_is_refused(tmp_path: Path) -> None:
    said = message(tmp_path / "job.yaml", json.dumps({**JOB, "model": {**JOB["model"], "chat_template": "nope.j2"}}))
    assert "model.chat_template" in said and "nope.j2: no such file" in said
