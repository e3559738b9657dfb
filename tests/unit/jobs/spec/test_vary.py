"""Many specs out of one."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import SpecError
from jobs.spec.command import CommandSpec
from jobs.spec.finetune import Spec
from jobs.spec.sweep import SweepSpec
from jobs.spec.vary import MOST_SPECS, sweep_values

NAME = re.compile(r"^[a-z0-9][a-z0-9._-]{0,62}$")


def spec(name: str = "rotten", **train: Any) -> Spec:
    values = {"model": {"path": "/m", "task": "causal-lm"}, "data": {"train": "/d", "format": "text"}}
    return Spec.model_validate({**values, "name": name, "train": train, "storage_path": "/runs"})


def refused(fields: dict[str, Any], base: Any = None) -> list[str]:
    with pytest.raises(SpecError) as caught:
        (base or spec()).vary(fields)
    return str(caught.value).splitlines()


def test_all_combinations_in_order_the_last_one_fastest_and_named_after_their_values() -> None:
    made = spec().vary(learning_rate=[1e-5, 2e-5], warmup_ratio=[0.03, 0.1])
    assert [(one.train.learning_rate, one.train.warmup_ratio) for one in made] == [
        (1e-5, 0.03), (1e-5, 0.1), (2e-5, 0.03), (2e-5, 0.1),
    ]  # fmt: skip
    assert [one.name for one in made] == [
        "rotten-lr1e-05-wr0.03", "rotten-lr1e-05-wr0.1", "rotten-lr2e-05-wr0.03", "rotten-lr2e-05-wr0.1",
    ]  # fmt: skip
    assert [one.queue.labels for one in made[:2]] == [
        {"train.learning_rate": "1e-05", "train.warmup_ratio": "0.03"},
        {"train.learning_rate": "1e-05", "train.warmup_ratio": "0.1"},
    ]
    same = {"name": "rotten", "train": spec().train, "queue": spec().queue}
    assert all(one.model_copy(update=same) == spec() for one in made)


def test_dotted_names_reach_every_field_and_a_bare_one_under_train_goes_first() -> None:
    (one,) = spec().vary({"train.zero.stage": [2], "eval.per_device_eval_batch_size": [4], "priority": [7]}, seed=[3])
    assert (one.train.zero.stage, one.eval.per_device_eval_batch_size, one.queue.priority, one.seed) == (2, 4, 7, 3)
    assert one.name == "rotten-stage2-pdebs4-priority7-seed3"


@pytest.mark.parametrize(
    ("base", "given", "gone"),
    [
        ({"warmup_steps": 5.0}, {"warmup_ratio": [0.1]}, "warmup_steps"),
        ({"warmup_ratio": 0.1}, {"warmup_steps": [5.0]}, "warmup_ratio"),
        ({"max_steps": 5}, {"num_train_epochs": [2.0]}, "max_steps"),
        ({"global_batch_tokens": 9000}, {"global_batch_size": [8]}, "global_batch_tokens"),
    ],
)
def test_what_is_given_takes_the_place_of_what_says_the_same(
    base: dict[str, Any], given: dict[str, Any], gone: str
) -> None:
    (one,) = spec(**base).vary(given)
    assert getattr(one.train, gone) is None
    ((name, (value,)),) = given.items()
    assert getattr(one.train, name) == value


def test_what_says_the_same_gives_way_in_the_base_of_a_sweep_too() -> None:
    base = spec(max_steps=5).with_value("data.eval_fraction", 0.1)
    value = {"kind": "sweep", "base": base.model_dump(mode="json"), "space": {"learning_rate": [1e-5, 1e-4]}}
    (one,) = SweepSpec.model_validate(value).vary({"base.train.num_train_epochs": [2.0]})
    assert (one.base.train.max_steps, one.base.train.num_train_epochs) == (None, 2.0)


def test_both_of_two_that_say_the_same_are_refused() -> None:
    (line,) = refused({"warmup_ratio": [0.1], "warmup_steps": [5.0]})
    assert "warmup_ratio and warmup_steps are both given" in line


def test_all_mistakes_in_names_come_at_once() -> None:
    assert refused({"lerning_rate": [1], "text": 3, "lr": [1], "train": [1], "kind": [1], "seed": []}) == [
        "lerning_rate: unknown key; did you mean train.learning_rate?",
        "text: give a list of values, as text=[3]",
        "lr: unknown key; use train.learning_rate",
        "train: is a section: vary the fields in it",
        "kind: cannot be varied",
        "seed: has no values",
    ]


def test_a_field_of_another_kind_of_spec_names_that_kind() -> None:
    for name in ("command", "env.SHARD"):
        assert refused({name: [["a"]]}) == [
            f"{name}: unknown key: it is for kind: command, and this spec is of kind finetune"
        ]
    (line,) = refused({"lora.rank": [4]}, CommandSpec(kind="command", command=("x",)))
    assert line == "lora.rank: unknown key: it is for kind: finetune, and this spec is of kind command"
    assert refused({"nowhere.rank": [4]})[0].startswith("nowhere.rank: there is no section nowhere")


def test_all_mistakes_in_values_come_at_once_and_once_each() -> None:
    assert refused({"learning_rate": [-1.0, 1e-5], "max_steps": [1.5, "x", 3], "seed": [1, 2]}) == [
        "train.learning_rate: must be greater than 0.0, but is -1.0",
        "train.max_steps: must be a whole number, but is 1.5",
        'train.max_steps: must be a whole number, but is the text "x"',
    ]


@pytest.mark.parametrize("values", ["abc", 3, {"a": 1}, None, [object()], [{1, 2}]])
def test_what_is_no_list_of_plain_values_is_refused(values: Any) -> None:
    (line,) = refused({"seed": values})
    assert line.startswith("seed: ")


def test_too_many_are_refused_before_any_is_made() -> None:
    (line,) = refused({"seed": range(MOST_SPECS), "learning_rate": [1e-5, 2e-5]})
    assert "20,000 combinations" in line


def test_nothing_to_vary_is_refused() -> None:
    assert "nothing is varied" in refused({})[0]


def test_numbers_of_numpy_count_as_numbers() -> None:
    numpy = pytest.importorskip("numpy")
    made = spec().vary(learning_rate=numpy.geomspace(1e-5, 1e-4, 3), seed=numpy.arange(2))
    assert [one.seed for one in made] == [0, 1] * 3 and type(made[0].train.learning_rate) is float


def test_paths_become_absolute_and_names_take_their_last_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small").mkdir()
    made = spec().vary({"model.path": ["./small", "org/Large", "run:first"], "storage_path": ["here"]})
    assert [one.model.path for one in made] == [str(tmp_path / "small"), "org/Large", "run:first"]
    assert {one.storage_path for one in made} == {str(tmp_path / "here")}
    assert [one.name for one in made] == [f"rotten-path{end}-sphere" for end in ("small", "large", "run-first")]


def test_long_names_are_cut_and_stay_different() -> None:
    made = spec("x" * 63).vary(learning_rate=[1e-5, 2e-5], seed=[1, 1])
    assert [one.name.lstrip("x") for one in made] == [
        "-lr1e-05-seed1", "-lr1e-05-seed1-2", "-lr2e-05-seed1", "-lr2e-05-seed1-2",
    ]  # fmt: skip
    assert len({one.name for one in made}) == 4 and all(NAME.match(one.name) for one in made)
    many = {
        f"train.zero.{name}": [1, 2] for name in ("reduce_bucket_size", "prefetch_bucket_size", "max_live_parameters")
    }
    many |= {"train.per_device_train_batch_size": [1, 2], "eval.per_device_eval_batch_size": [11, 12], "seed": [1, 2]}
    names = [one.name for one in spec("y" * 30).vary(many)]
    assert len(set(names)) == 64 and all(NAME.match(name) for name in names)


@settings(deadline=None, max_examples=60)
@given(
    base=st.from_regex(r"\A[a-z0-9][a-z0-9._-]{0,62}\Z"),
    rates=st.lists(st.floats(1e-12, 1.0), min_size=1, max_size=4),
    labels=st.lists(st.text(max_size=40), min_size=1, max_size=3),
)
def test_every_name_is_one_and_no_two_are_the_same(base: str, rates: list[float], labels: list[str]) -> None:
    made = spec(base).vary({"train.learning_rate": rates, "queue.after": [[label] for label in labels]})
    assert len({one.name for one in made}) == len(rates) * len(labels) and all(NAME.match(one.name) for one in made)
    command = CommandSpec(kind="command", command=("x",), name=base)
    texts = [label.replace("\0", "") for label in labels]
    assert all(NAME.match(one.name) for one in command.vary({"env.A": texts}))


def test_a_command_is_varied_by_its_variables_and_by_whole_command_lines() -> None:
    command = CommandSpec(kind="command", command=("x",), name="eval", env={"B": "c"})
    made = command.vary({"env.SHARD": ["0", "1"]}, command=[["a", "b"], ["c"]])
    assert [(one.env, one.command) for one in made][1:3] == [
        ({"B": "c", "SHARD": "0"}, ("c",)), ({"B": "c", "SHARD": "1"}, ("a", "b")),
    ]  # fmt: skip
    assert made[0].name == "eval-shard0-command1"
    (line,) = refused({"env.1": ["x"]}, command)
    assert line == 'env.1: "1" is not a valid variable name: use letters, digits and _, and do not begin with a digit'
    assert refused({"learning_rate": [1e-5]}, command)


def test_the_base_stays_as_it_is() -> None:
    base = spec(warmup_steps=5.0)
    before = json.dumps(base.model_dump(mode="json"))
    base.vary(warmup_ratio=[0.1, 0.2])
    assert json.dumps(base.model_dump(mode="json")) == before and not math.isnan(base.train.learning_rate)


def test_sweep_options_are_fields_with_lists_of_values() -> None:
    assert sweep_values(["train.learning_rate=1e-5, 5e-5", "data.packing=true,false"]) == {
        "train.learning_rate": [1e-5, 5e-5],
        "data.packing": [True, False],
    }
    assert sweep_values(["train.max_steps=[10, 20]", "model.path=a/b"]) == {
        "train.max_steps": [10, 20],
        "model.path": ["a/b"],
    }
    assert sweep_values(["env.SHARD=0,1"]) == {"env.SHARD": ["0", "1"]}
    assert sweep_values(["data.labels=[[a, b], [b, a]]"]) == {"data.labels": [["a", "b"], ["b", "a"]]}


def test_all_wrong_sweep_options_are_named_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        sweep_values(["train.learning_rate", "seed=", "a=1", "a=2", "b=[1", "c=1,,2", "d=1,"])
    lines = str(caught.value).splitlines()
    assert len(lines) == 6
    assert "c has an empty value among 1,,2" in lines[4] and "d has an empty value among 1," in lines[5]
    assert "'train.learning_rate' must be KEY=VALUE,VALUE" in lines[0] and "'seed='" in lines[1]
    assert "a is given twice" in lines[2] and lines[3].startswith("--sweep b=[1")
