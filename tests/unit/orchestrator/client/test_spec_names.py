"""What is wrong with a submission is said of files and lines, though the server can only count."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic import BaseModel

from cluster.errors import CapacityError, Mistake, SpecError
from jobs.spec.command import CommandSpec
from jobs.spec.load import SPEC_MODELS, spec_of
from orchestrator.client.client import with_queue_settings
from orchestrator.client.spec_names import Named, load_named, place_errors, with_names
from orchestrator.queue.errors import UnknownJob

ONE = CommandSpec(kind="command", name="one", command=("true",))


def write(folder: Path, name: str, more: str = "") -> str:
    (folder / name).write_text(f"kind: command\nname: {name[0]}\ncommand: [echo]\n{more}")
    return str(folder / name)


def test_numbers_become_files_and_fields_become_lines(tmp_path: Path) -> None:
    a, b = write(tmp_path, "a.yaml"), write(tmp_path, "b.yaml", "queue:\n  after: [gone]\n")
    specs = load_named([a, b, ONE])
    error = UnknownJob.of(
        [
            Mistake("there is no job 'gone'", "queue.after", spec=2),
            Mistake("it is too large", spec=1),
            Mistake("bad", spec=3),
            Mistake("and 2 more"),
        ]
    )
    renamed = with_names(error, specs)
    assert type(renamed) is UnknownJob
    assert str(renamed).splitlines() == [
        f"{b}:5: queue.after: there is no job 'gone'",
        f"{a}: it is too large",
        "spec 3 (one): bad",
        "and 2 more",
    ]


def test_of_one_file_the_line_is_named_and_of_what_concerns_no_field_nothing(tmp_path: Path) -> None:
    specs = load_named([write(tmp_path, "b.yaml", "working_dir: x\n")], ["queue.tenant=x"])
    told = [Mistake("not there", "working_dir"), Mistake("none", "queue.tenant"), Mistake("it is too large")]
    said = str(with_names(CapacityError.of(told), specs))
    assert said.splitlines() == [
        f"{tmp_path}/b.yaml:4: working_dir: not there",
        "--set: queue.tenant: none",
        "it is too large",
    ]
    for error, said in (
        (SpecError("it is too large"), ": it is too large"),
        (SpecError.at("command[0]", "odd"), ":3: command[0]: odd"),
    ):
        with pytest.raises(SpecError) as raised, place_errors(specs[0]):
            raise error
        assert str(raised.value) == f"{tmp_path}/b.yaml{said}"
    assert str(with_names(SpecError.of([Mistake("beyond", spec=7)]), [Named(ONE, "x")])) == "spec 7: beyond"
    assert str(with_names(SpecError("spec 2: of an older server"), specs)) == "spec 2: of an older server"


def test_the_mistakes_of_all_files_come_at_once(tmp_path: Path) -> None:
    wrong = [write(tmp_path, "a.yaml", "gpus: 1\n"), write(tmp_path, "b.yaml"), write(tmp_path, "c.yaml", "cwd: .\n")]
    with pytest.raises(SpecError) as caught:
        load_named([*wrong, str(tmp_path / "gone.yaml")])
    lines = str(caught.value).splitlines()
    assert [line.partition(": ")[0] for line in lines[:2]] == [f"{wrong[0]}:4", f"{wrong[2]}:4"]
    assert "gone.yaml" in lines[2] and len(lines) == 3


@pytest.mark.filterwarnings("error")
def test_a_copy_with_a_dictionary_for_a_section_is_checked_and_sent_whole() -> None:
    copy = ONE.model_copy(update={"queue": {"after": ["a-1"], "priority": 3}})
    (sent,) = with_queue_settings(load_named([copy]), "vision", None, ("b-2",))
    assert (sent["queue"]["tenant"], sent["queue"]["priority"], sent["queue"]["after"]) == ("vision", 3, ["a-1", "b-2"])
    assert copy.vary({"resources.num_workers": [1, 2]})[1].queue.priority == 3
    with pytest.raises(SpecError, match=r"^spec 2 \(one\): queue.priority: must be 1000 or less, but is 5000$"):
        with_queue_settings(load_named([ONE, ONE.model_copy(update={"queue": {"priority": 5000}})]), None, None, ())


def test_a_spec_from_a_file_is_validated_once_on_each_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    validated = list[type[BaseModel]]()
    whole = BaseModel.model_validate_json.__func__  # type: ignore[attr-defined]

    def counting(cls: type[BaseModel], *args: Any, **options: Any) -> BaseModel:
        validated.extend([cls] if cls in SPEC_MODELS.values() else [])
        return cast(BaseModel, whole(cls, *args, **options))

    monkeypatch.setattr(BaseModel, "model_validate_json", classmethod(counting))
    (sent,) = with_queue_settings(load_named([write(tmp_path, "a.yaml")]), "vision", 3, ("b-2",))
    assert validated == [CommandSpec]
    stored = spec_of(sent, reader="server").model_dump_json()  # as the server does
    assert validated == [CommandSpec] * 2
    assert spec_of(json.loads(stored)).queue.after == ("b-2",)  # as the driver does
    assert validated == [CommandSpec] * 3


def test_a_comparison_is_sent_as_any_job(tmp_path: Path) -> None:
    base = {
        "model": {"path": "m", "task": "causal-lm"},
        "data": {"train": "a.jsonl", "format": "text", "eval": "b.jsonl"},
    }
    written = {"kind": "compare", "base": base, "methods": ["full", "lora"]}
    (tmp_path / "compare.json").write_text(json.dumps(written))
    (sent,) = with_queue_settings(load_named([str(tmp_path / "compare.json")], ["seeds=2"]), "vision", None, ())
    assert (sent["kind"], sent["queue"]["tenant"], sent["queue"]["labels"]) == ("compare", "vision", {"seeds": "2"})
    assert spec_of(sent).name == "compare"
