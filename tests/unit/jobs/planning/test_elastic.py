"""`num_workers: {min, max}`: which numbers of workers it means, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.capacity.inventory import Inventory, Node
from cluster.errors import SpecError
from jobs.planning import most_workers, with_workers, worker_numbers
from jobs.spec.finetune import Spec
from jobs.spec.load import load_spec

YAML = """
name: e
model: {path: m, task: sequence-classification}
data: {train: a.csv, format: classification, labels: [x, y], seq_len: 8}
"""


def spec(tmp_path: Path, workers: str, train: str = "global_batch_size: 8", *overrides: str) -> Spec:
    path = tmp_path / "job.yaml"
    path.write_text(f"{YAML}train: {{{train}}}\nresources: {{num_workers: {workers}, gpus_per_worker: 0}}\n")
    loaded = load_spec(str(path), overrides)
    assert isinstance(loaded, Spec)
    return loaded


def refused(tmp_path: Path, *given: Any) -> str:
    with pytest.raises(SpecError) as error:
        worker_numbers(spec(tmp_path, *given))
    return str(error.value)


@pytest.mark.parametrize(
    ("workers", "train", "numbers"),
    [
        ("4", "global_batch_size: 8", (4,)),
        ("{min: 1, max: 8}", "global_batch_size: 8", (1, 2, 3, 4, 8)),
        ("{min: 5, max: 7}", "global_batch_size: 8", (5,)),  # two forward passes with each of them
        ("{min: 2, max: 2}", "global_batch_size: 8", (2,)),
        ("{min: 1, max: 8}", "global_batch_size: 8, per_device_train_batch_size: 4", (1, 2)),
        ("{min: 2, max: 64}", "global_batch_tokens: 512", (2, 3, 4, 5, 6, 7, 8, 10, 11, 13, 16, 22, 32, 64)),
    ],
)
def test_the_numbers_with_which_a_step_takes_less_time(
    tmp_path: Path, workers: str, train: str, numbers: tuple[int, ...]
) -> None:
    assert worker_numbers(spec(tmp_path, workers, train)) == numbers


def test_it_can_be_written_flat_and_changed_on_the_command_line(tmp_path: Path) -> None:
    nested, flat = spec(tmp_path, "{min: 2, max: 8}"), spec(tmp_path, "8, min_workers: 2")
    assert nested == flat and (nested.resources.min_workers, nested.resources.num_workers) == (2, 8)
    assert Spec.model_validate_json(nested.model_dump_json()) == nested
    assert spec(tmp_path, "8", "global_batch_size: 8", "resources.min_workers=4").resources.min_workers == 4
    fixed = with_workers(nested, 3)
    assert (fixed.resources.min_workers, fixed.resources.num_workers, worker_numbers(fixed)) == (None, 3, (3,))


def test_a_number_in_its_place_is_that_number(tmp_path: Path) -> None:
    nested = spec(tmp_path, "{min: 2, max: 8}")
    assert [worker_numbers(one) for one in nested.vary(num_workers=[1, 4])] == [(1,), (4,)]
    assert nested.model_dump()["resources"]["num_workers"] == {"min": 2, "max": 8}
    saved = tmp_path / "saved.json"
    saved.write_text(nested.model_dump_json())
    assert worker_numbers(load_spec(str(saved), ["resources.num_workers=1"])) == (1,)
    assert load_spec(str(saved), []) == nested
    with pytest.raises(SpecError, match="and not both"):
        spec(tmp_path, "{min: 2, max: 8}", "global_batch_size: 8", "resources.min_workers=4")


def test_what_is_wrong_is_told_with_its_line(tmp_path: Path) -> None:
    assert refused(tmp_path, "{min: 8, max: 2}").endswith("num_workers is from 8 to 2: min must not exceed max")
    assert "{min: N, max: N}" in refused(tmp_path, "{mim: 2, max: 8}")
    assert "job.yaml:6" in refused(tmp_path, "{min: 2}")
    assert "min_workers: must be 1 or more" in refused(tmp_path, "{min: 0, max: 2}")
    assert "train.global_batch_size" in refused(tmp_path, "{min: 2, max: 8}", "learning_rate: 1e-4")
    assert "leave it out" in refused(
        tmp_path, "{min: 2, max: 8}", "global_batch_size: 8, gradient_accumulation_steps: 1"
    )
    assert "fewer rows than num_workers (9)" in refused(tmp_path, "{min: 2, max: 9}")


def test_by_hand_it_takes_what_is_free_or_the_least(tmp_path: Path) -> None:
    elastic = spec(tmp_path, "{min: 2, max: 8}")

    def most(*cpus: int) -> int:
        return most_workers(elastic, Inventory(tuple(Node(str(number), size) for number, size in enumerate(cpus))))

    assert (most(3, 2), most(4, 4), most(100), most(7), most(1), most()) == (4, 8, 8, 4, 2, 2)
