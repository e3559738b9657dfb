"""A model that passed the dry run is built again only if something about it has changed."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.preflight.cache import cached_cpu_speed, remember_tried, was_tried
from jobs.spec.finetune import Spec


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = tmp_path / "m"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    write_weights(folder, [2, 2], 0)
    return folder


def write_weights(folder: Path, shape: list[int], value: int) -> None:
    header = json.dumps({"w": {"dtype": "U8", "shape": shape, "data_offsets": [0, 4]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes([value] * 4))


def spec(**model: Any) -> Spec:
    values = {"path": "/m", "task": "causal-lm", **model}
    return Spec.model_validate({"model": values, "data": {"train": "/d", "format": "text"}})


def speed(measured: float) -> tuple[float, float]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))
        return cached_cpu_speed(1, lambda: (measured, measured))


def test_a_model_is_remembered_whatever_its_path_and_weights(model: Path) -> None:
    assert not was_tried(spec(), str(model))
    remember_tried(spec(), str(model))
    write_weights(model, [2, 2], 7)
    assert was_tried(spec(path="/elsewhere"), str(model))


@pytest.mark.parametrize(
    "change",
    [
        lambda model: (model / "config.json").write_text('{"a": 1}'),
        lambda model: (model / "tokenizer.json").write_text('{"a": 1}'),
        lambda model: (model / "chat_template.jinja").write_text(""),
        lambda model: write_weights(model, [4], 0),
    ],
)
def test_another_configuration_tokenizer_or_shape_is_tried_anew(model: Path, change: Callable[[Path], object]) -> None:
    remember_tried(spec(), str(model))
    change(model)
    assert not was_tried(spec(), str(model))


def test_another_kernel_is_tried_anew(model: Path) -> None:
    remember_tried(spec(), str(model))
    assert not was_tried(spec(attn_implementation="eager"), str(model))


def test_another_method_is_tried_anew(model: Path) -> None:
    remember_tried(spec(), str(model))
    lora = spec().model_copy(update={"method": spec().method.model_copy(update={"kind": "lora"})})
    assert not was_tried(lora, str(model))
    remember_tried(lora, str(model))
    assert was_tried(lora, str(model))
    other = lora.model_copy(update={"lora": lora.lora.model_copy(update={"target_modules": ("q_proj",)})})
    assert not was_tried(other, str(model))


def test_a_cache_that_cannot_be_written_is_done_without(model: Path, tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file where the directory would be")
    remember_tried(spec(), str(model))
    assert not was_tried(spec(), str(model))
    assert (speed(1.0), speed(2.0)) == ((1.0, 1.0), (2.0, 2.0))


@pytest.mark.usefixtures("model")
def test_a_speed_is_measured_once(tmp_path: Path) -> None:
    assert speed(1.0) == speed(2.0) == (1.0, 1.0)
    assert [file.suffix for file in tmp_path.glob("home/.cache/fleetune/speeds/*")] == [".json"]
