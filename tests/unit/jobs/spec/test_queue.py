"""What a job's labels say of the fields that were changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.errors import SpecError
from jobs.spec.command import CommandSpec
from jobs.spec.queue import LONGEST_LABEL, Queue, label_value
from orchestrator.client.spec_names import load_named
from orchestrator.pages.queue import format_labels


def command(**more: object) -> CommandSpec:
    return CommandSpec.model_validate({"kind": "command", "command": ("true",), **more})


def test_changed_fields_become_labels_and_given_labels_stay() -> None:
    queue = Queue(labels={"team": "vision"})
    changed = queue.labelled({"resources.num_workers": 4, "env.KEY": "secret", "queue.priority": 3, "name": "x"})
    assert changed.labels == {"team": "vision", "resources.num_workers": "4"}
    assert queue.labelled({"env": {"KEY": "secret"}}) == queue


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e-5, "1e-05"), (0.1, "0.1"), (3, "3"), (None, "none"), (True, "true"), ("a\nb", "a b"), ([1, "b"], '[1, "b"]')],
)
def test_values_are_short_text_on_one_line(value: object, text: str) -> None:
    assert label_value(value) == text


def test_a_long_value_is_cut_so_that_the_spec_stays_valid() -> None:
    spec = command()
    spec = spec.model_copy(update={"queue": spec.queue.labelled({"command": ["x" * 1000]})})
    assert len(spec.queue.labels["command"]) == LONGEST_LABEL
    assert CommandSpec.model_validate_json(spec.model_dump_json()) == spec


def test_overrides_of_the_command_line_become_labels(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("kind: command\ncommand: [echo]\n")
    (one,) = load_named([str(tmp_path / "a.yaml")], ["resources.num_workers=2", "queue.labels.note=first try"])
    assert one.spec.queue.labels == {"note": "first try", "resources.num_workers": "2"}


def test_labels_that_no_list_could_show_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("kind: command\ncommand: [echo]\nqueue: {labels: {'a b': x, n: 3}}\n")
    with pytest.raises(SpecError, match=r"queue\.labels"):
        load_named([str(tmp_path / "a.yaml")])
    assert Queue.model_validate({"labels": {"a.b/c-d": ""}}).labels == {"a.b/c-d": ""}


def test_sections_are_left_out_where_the_last_part_of_a_name_tells() -> None:
    assert format_labels({"train.learning_rate": "1e-05", "seed": "1"}) == "learning_rate=1e-05 seed=1"
    assert format_labels({"data.seed": "1", "train.seed": "2"}) == "data.seed=1 train.seed=2"
