"""The engine makes one step, in a process of its own: see `tests.support.one_step`."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from jobs.training.model.cpu_optimizer import cause_in
from tests.support import tiny
from tests.support.gangs import one_step


def test_the_line_of_the_compiler_is_the_cause() -> None:
    begin = "Error building extension 'cpu_adam': [1/3] g++ -O3 -c a.cpp -o a.o\nFAILED: [code=1] a.o\ng++ -c a.cpp\n"
    header = "/usr/include/x.h:1:10: fatal error: Python.h: No such file or directory"
    assert cause_in(f"{begin}{header}\n    1 | #include <Python.h>\n") == header
    assert cause_in(f"{begin}/bin/sh: 1: g++: not found\nninja: build stopped.\n") == "g++: not found"
    assert cause_in("op is not compatible\nwith more") == "op is not compatible"


@pytest.mark.parametrize("bf16", [False, True])
def test_the_optimizer_updates_the_weights_that_the_model_computes_with_where_both_are_fp32(
    tmp_path: pathlib.Path, bf16: bool
) -> None:
    model = tiny.save_model(tmp_path / "gpt2", "gpt2")
    whole = one_step(tmp_path, spec_of(tmp_path, model, train__bf16=bf16))
    assert len(whole["same"]) == 2 and all(shared is not bf16 for shared in whole["same"])
    assert all(whole["equal"]) and whole["changed"] and whole["largest"] == max(whole["flats"])
    assert whole["compiles"] == ["absent", "for another PyTorch", "source changed"]
    if bf16:
        return
    # In pieces, as a part of more than `SUB_GROUP_SIZE` elements is: as large as the plan says, with the same weights.
    pieces = one_step(tmp_path, spec_of(tmp_path, model), 5000)
    assert len(pieces["same"]) > 2 and all(pieces["same"]) and all(pieces["equal"]) and pieces["changed"]
    assert sum(pieces["flats"]) == sum(whole["flats"])
    assert pieces["largest"] == max(pieces["flats"]) < max(whole["flats"])
    assert pieces["total"] == pytest.approx(whole["total"], rel=1e-6)


@pytest.mark.parametrize("stage", [2, 3])
def test_weights_that_are_not_finite_are_refused_with_their_name(tmp_path: pathlib.Path, stage: int) -> None:
    model = tiny.save_model(tmp_path / "gpt2", "gpt2")
    tensors = load_file(model / "model.safetensors")
    tensors["transformer.h.1.mlp.c_fc.weight"][3, 5] = float("inf")
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    said = one_step(tmp_path, spec_of(tmp_path, model, train__zero__stage=stage))
    assert "have values that are NaN or infinite; the first is transformer.h.1.mlp.c_fc.weight." in said


@pytest.mark.parametrize("stage", [1, 2])
def test_with_offload_in_half_precision_a_step_after_one_that_is_not_finite_is_applied(
    tmp_path: pathlib.Path, stage: int
) -> None:
    spec = spec_of(
        tmp_path, tiny.save_model(tmp_path / "gpt2", "gpt2"),
        train__bf16=True, train__zero__stage=stage, train__zero__offload_optimizer="cpu",
    )  # fmt: skip
    assert one_step(tmp_path, spec, factors=[1.0, 1e39, 1.0]) == [False, True, False]


def spec_of(folder: pathlib.Path, model: pathlib.Path, **changes: Any) -> Any:
    return tiny.spec_of(folder, model, folder / "none", resources__num_workers=1, **changes)
