"""Specs of kind command, the choice of the kind, and specs out of JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from cluster.errors import SpecError
from jobs.spec.checking.fields import OTHER_NAMES_OF_COMMAND, section_model, spec_fields
from jobs.spec.command import CommandSpec
from jobs.spec.finetune import Spec
from jobs.spec.load import dump_spec, load_job_spec, load_spec, spec_of
from orchestrator.pages import show

GOOD = """\
kind: command
name: evaluate
command: [python, evaluate.py]
"""
TRAINS = {"model": {"path": "/m", "task": "causal-lm"}, "data": {"train": "/d", "format": "text"}}


def write(folder: Path, text: str) -> str:
    path = folder / "job.yaml"
    path.write_text(text)
    return str(path)


def lines(folder: Path, addition: str, *overrides: str) -> list[str]:
    path = write(folder, GOOD + addition)
    with pytest.raises(SpecError) as caught:
        load_job_spec(path, overrides)
    return str(caught.value).replace(f"{folder}/", "").splitlines()


def refused(value: dict[str, Any]) -> list[str]:
    with pytest.raises(SpecError) as caught:
        spec_of(value)
    return str(caught.value).splitlines()


def test_a_command_runs_beside_the_spec_s_file_and_its_words_stay_as_they_are(tmp_path: Path) -> None:
    spec = load_job_spec(write(tmp_path, GOOD + "working_dir: tools\n"), ["env={A: b}", "resources.num_workers=2"])
    assert isinstance(spec, CommandSpec)
    assert spec.command == ("python", "evaluate.py") and spec.working_dir == str(tmp_path / "tools")
    assert (spec.env, spec.resources.num_workers, spec.queue.preemptible) == ({"A": "b"}, 2, None)


def test_a_spec_that_trains_is_loaded_as_ever_and_by_either_function(tmp_path: Path) -> None:
    path = write(tmp_path, json.dumps(TRAINS))
    assert load_job_spec(path) == load_spec(path) and load_spec(path).kind == "finetune"
    assert load_spec(path, ["working_dir=mine"]).working_dir == str(tmp_path / "mine")


def test_a_command_is_refused_where_something_is_to_be_trained(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    with pytest.raises(SpecError, match=f"is of kind command.*fleetune submit {path}"):
        load_spec(path)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (
            "comand",
            'job.yaml:1: kind: must be finetune, command, sweep or compare, but is "comand"; did you mean command?',
        ),
        (
            "[command]",
            'job.yaml:1: kind: must be finetune, command, sweep or compare, but is ["command"]; did you mean command?',
        ),
        ("", "job.yaml:1: kind: must be finetune, command, sweep or compare, but is empty"),
    ],
)
def test_a_kind_that_there_is_not_is_the_only_thing_to_say(tmp_path: Path, kind: str, expected: str) -> None:
    path = write(tmp_path, GOOD.replace("kind: command", f"kind: {kind}") + "nonsense: 1\n")
    with pytest.raises(SpecError) as caught:
        load_job_spec(path)
    assert str(caught.value).replace(f"{tmp_path}/", "") == expected


def test_a_command_without_a_kind_is_told_to_say_it(tmp_path: Path) -> None:
    path = write(tmp_path, "command: [true]\n")
    with pytest.raises(SpecError, match=r"job.yaml:1: kind: is missing: a spec with a command needs kind: command"):
        load_job_spec(path)


@pytest.mark.parametrize(
    ("addition", "expected"),
    [
        ("cmd: [x]\n", "job.yaml:4: cmd: unknown key; it is called command here"),
        ("env_vars: {}\n", "job.yaml:4: env_vars: unknown key; it is called env here"),
        ("gpus: 2\n", "job.yaml:4: gpus: unknown key; use resources.gpus_per_worker"),
        ("cwd: .\n", "job.yaml:4: cwd: unknown key; it is called working_dir here"),
        ("tenant: a\n", "job.yaml:4: tenant: belongs under queue"),
        ("timeout: 3\n", "job.yaml:4: timeout: unknown key; use queue.max_runtime_s"),
        ("model: {}\n", "job.yaml:4: model: unknown key: it is for kind: finetune, and this spec is of kind command"),
        ("lr: 1\n", "job.yaml:4: lr: unknown key; the spec has version, kind, name, command, working_dir, env"),
        ("env: [A]\n", 'job.yaml:4: env: must be variables with their values (NAME: text), but is ["A"]'),
        ("env: {A: 1}\n", "job.yaml:4: env.A: must be text (in quotes), but is 1"),
        ("env: {1A: b}\n", 'job.yaml:4: env.1A: "1A" is not a valid variable name: use letters, digits and _, and do'),
        ("queue: {secrets: [a-b]}\n", 'queue.secrets.0: "a-b" is not a valid variable name'),
        ("queue: {on_end: {web: 1}}\n", "queue.on_end.web: unknown key; did you mean webhook?"),
        ("queue: {on_end: {webhook: ftp://x}}\n", "does not fit. URL that gets the outcome"),
        ("queue: {on_end: {}}\n", "queue.on_end: on_end needs either webhook or command"),
        ("queue: {on_end: x}\n", "must be a section with the keys webhook, command"),
        ("queue: {priority: 5000}\n", "queue.priority: must be 1000 or less, but is 5000"),
        ('env: {A: "x\\0y"}\n', "env.A: contains a zero byte"),
        (
            'env: {RANK: "0"}\n',
            "job.yaml:4: env.RANK: Fleetune sets RANK itself: take another name. Reserved are RANK, ",
        ),
        ("env: {FLEETUNE_JOB: mine}\n", "env.FLEETUNE_JOB: Fleetune sets FLEETUNE_JOB itself: take another name"),
        ("queue: {secrets: [MASTER_ADDR]}\n", "queue.secrets.0: Fleetune sets MASTER_ADDR itself"),
    ],
)
def test_mistakes_are_said_in_plain_words(tmp_path: Path, addition: str, expected: str) -> None:
    (line,) = lines(tmp_path, addition)
    assert expected in line


def test_all_mistakes_come_at_once(tmp_path: Path) -> None:
    found = lines(tmp_path, "nam: x\nresources: {num_workers: 0}\nqueue: {priority: a}\n", "command=[]")
    assert [line.split(": ")[0] for line in found] == ["--set", "job.yaml:4", "job.yaml:5", "job.yaml:6"]


def test_a_command_in_a_spec_that_trains_is_of_the_other_kind() -> None:
    assert refused({**TRAINS, "command": ["x"]}) == [
        "command: unknown key: it is for kind: command, and this spec is of kind finetune"
    ]


def test_a_spec_out_of_its_json_is_the_same_and_is_not_changed() -> None:
    for value in (TRAINS, {"kind": "command", "command": ["a", "b"], "env": {"X": "y"}}):
        spec = spec_of(value)
        saved = json.loads(dump_spec(spec))
        assert spec_of(saved) == spec and saved == json.loads(dump_spec(spec))
    assert isinstance(spec_of(TRAINS), Spec) and "kind" not in TRAINS


def test_mistakes_in_json_come_at_once_and_without_a_line() -> None:
    value = {**TRAINS, "train": {"lr": 1, "max_steps": 0}, "queue": {"tenant": ""}}
    assert refused(value) == [
        "train.lr: unknown key; it is called learning_rate here",
        "train.max_steps: must be 1 or more, but is 0",
        "queue.tenant: must be some text, but is empty",
    ]


@pytest.mark.parametrize("value", [{"model": {1, 2}}, {"kind": None}, {"version": 9}, {"kind": "x"}, {}])
def test_no_json_escapes_as_anything_but_a_spec_error(value: dict[str, Any]) -> None:
    assert refused(value)


def test_json_that_is_nested_too_deeply_is_refused() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert refused({"model": deep})


@pytest.mark.parametrize("name", list(spec_fields(CommandSpec)))
def test_field_is_documented_in_one_sentence(name: str) -> None:
    description = spec_fields(CommandSpec)[name].description
    assert description and description.endswith(".") and "\n" not in description


def test_sections_are_frozen_and_refuse_unknown_keys() -> None:
    inner = [model for info in spec_fields(CommandSpec).values() if (model := section_model(info))]
    models: list[type[BaseModel]] = [CommandSpec, *inner]
    assert all(model.model_config.get("frozen") and model.model_config.get("extra") == "forbid" for model in models)


def test_every_alias_of_a_command_leads_to_a_field() -> None:
    others = {name for names in OTHER_NAMES_OF_COMMAND.values() for name in names}
    assert set(OTHER_NAMES_OF_COMMAND) <= set(spec_fields(CommandSpec))
    assert not others & set(spec_fields(CommandSpec))


def test_every_field_of_a_command_is_printed_with_its_type() -> None:
    page = show.reference("command")
    assert all(name.rpartition(".")[2] + ":" in page for name in spec_fields(CommandSpec))
    assert "<class" not in page and "typing." not in page
