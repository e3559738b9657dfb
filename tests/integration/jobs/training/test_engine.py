"""The engine makes one step, in a process of its own: see `tests.support.one_step`."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cluster.errors import LaunchRefused, OutOfMemory, RunFailed
from jobs.training.model import cpu_optimizer
from jobs.training.model.cpu_optimizer import failure_of
from tests.support import tiny
from tests.support.gangs import one_step

COMMAND = "Error building extension 'cpu_adam': [1/3] g++ -O3 -c a.cpp -o a.o\nFAILED: [code=1] a.o\ng++ -c a.cpp\n"


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (
            f"{COMMAND}/bin/sh: 1: g++: not found\nninja: build stopped.\n",
            LaunchRefused,
            "on b: g++: not found. Install",
        ),
        (
            f"{COMMAND}/x.h:1:10: fatal error: Python.h: No such file or directory\n  1 |\n",
            LaunchRefused,
            "Python.h: No",
        ),
        (
            f"{COMMAND}ld: cannot find -lgomp\ncollect2: error: ld returned 1 exit status\n",
            LaunchRefused,
            "-lgomp. Install",
        ),
        (f"{COMMAND}c++: fatal error: Killed signal terminated program cc1plus\n", OutOfMemory, "memory is free"),
        (f"{COMMAND}cc1plus: out of memory allocating 65536 bytes\n", OutOfMemory, "memory is free"),
        (f"{COMMAND}x.cpp:9: error: no member named f\n", RunFailed, "no member named f. The log of the first rank"),
        (
            "[Errno 13] Permission denied: '/x/lock'",
            RunFailed,
            "on b: [Errno 13] Permission denied: '/x/lock'. The log",
        ),
    ],
)
def test_a_failed_compilation_says_its_cause_and_advises_a_compiler_only_where_one_is_missing(
    error: str, kind: type[Exception], says: str
) -> None:
    found = failure_of([("b", error)])
    assert type(found) is kind and says in str(found) and "which cannot be compiled" in str(found)


def test_the_compiler_s_own_words_win_over_a_rank_that_waited_for_it() -> None:
    said = str(failure_of([("a", "cpu_adam.so: cannot open shared object file"), ("b", "sh: 1: g++: not found")]))
    assert "on b, and on 1 other machine: sh: 1: g++: not found. Install" in said


class _Builder:
    NAME = "cpu_adam"

    def __init__(self, failing: int) -> None:
        self.failing, self.loads = failing, 0

    def load(self) -> None:
        self.loads += 1
        if self.loads <= self.failing:
            raise ImportError("cpu_adam.so: cannot open shared object file")


def test_a_compilation_of_another_process_that_was_stopped_is_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_optimizer, "_remove_stale", lambda device: None)
    for failing, fails in ((0, False), (1, False), (2, True)):
        builder = _Builder(failing)
        monkeypatch.setattr(cpu_optimizer, "_builder", lambda builder=builder: builder)
        assert (cpu_optimizer._why_not_loaded(torch.device("cpu")) is not None) is fails
        assert builder.loads == 1 + (failing > 0)


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
