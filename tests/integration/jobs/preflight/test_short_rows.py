"""Passes of short rows give the pass of long ones, for models that compute one token after another."""

from __future__ import annotations

import functools
import json
import pathlib
from dataclasses import replace
from typing import Any

import pytest

from jobs.preflight import model_trace
from jobs.preflight.model_trace import trace_model
from jobs.preflight.short_rows import STEPS, NotAParabolaError, lengthened, lengths_for
from jobs.preflight.traced_pass import TracedPass, fake_model, traced_pass
from jobs.preflight.tracker import Event, TooManyOperationsError
from jobs.spec.finetune import Spec
from jobs.training.model.load import DTYPES, model_config
from tests.support import tiny

MAMBA = {"model_type": "mamba", "vocab_size": 96, "hidden_size": 32, "state_size": 4, "num_hidden_layers": 1}


def made_up(length: int, held_by_turn: int = 10, weights: int = 500) -> TracedPass:
    """A loop over the tokens, which leaves bytes in each turn, and a product of `weights` bytes."""
    details = [("exp", 2 * length), ("stack", 2 * length + 7)]
    for turn in range(length):
        held = 2 * length + 7 + held_by_turn * turn
        details += [("mul", held + 30), ("matmul", held + held_by_turn)]
    live = details[-1][1]
    details += [("stack", live + length * length), ("mm", live + weights)]
    peak = max(held for _, held in details)
    end = Event("leave", "a", ("a.weight",), live, peak, 0, 0, tuple(details))
    events = (Event("enter", "a", ("a.weight",), 0, 0, 0, 0), end)
    return TracedPass(events, 64, 3 * length, 3, 12 * length, 5 * length * length, 2 + 2 * length, 8.0)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("weights", [500, 100_000])
@pytest.mark.parametrize("length", [64, 333, 4096])
def test_a_long_loop_is_the_continuation_of_short_ones(length: int, weights: int, step: int) -> None:
    expected = made_up(length, weights=weights)
    found = lengthened(functools.partial(made_up, weights=weights), length, step)
    assert [(event.live, event.peak) for event in found.events] == [
        (event.live, event.peak) for event in expected.events
    ]
    assert replace(found, events=()) == replace(expected, events=())


def test_a_pass_that_is_no_parabola_is_refused() -> None:
    with pytest.raises(NotAParabolaError, match="parabola"):
        lengthened(lambda length: made_up(length, held_by_turn=length**2), 4096, 8)


def test_another_order_of_the_modules_is_refused() -> None:
    def turned(length: int) -> TracedPass:
        made = made_up(length)
        return replace(made, events=made.events[:: 1 if length < 16 else -1])

    with pytest.raises(NotAParabolaError, match="order"):
        lengthened(turned, 4096, 8)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_short_rows_give_the_pass_of_long_ones(tmp_path: pathlib.Path, checkpointing: bool, step: int) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MAMBA))
    length = 45

    def trace(seq_len: int) -> TracedPass:
        spec = tiny.spec_of(
            tmp_path, tmp_path, tmp_path / "none",
            data__packing=False, data__seq_len=length, train__gradient_checkpointing=checkpointing,
        ).with_value("data.seq_len", seq_len)  # fmt: skip
        config = model_config(spec, str(tmp_path))
        model = fake_model(spec, str(tmp_path), (), DTYPES["fp32"], config)
        return traced_pass(spec, model, rows=2, detailed=True)

    whole, short = trace(length), lengthened(trace, length, step)
    assert [(event.live, event.peak) for event in short.events] == [(event.live, event.peak) for event in whole.events]
    assert (short.flops, short.operations, short.logits_bytes) == (whole.flops, whole.operations, whole.logits_bytes)


def test_a_model_with_a_loop_over_the_tokens_is_traced_with_short_rows(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MAMBA))
    spec = tiny.spec_of(tmp_path, tmp_path, tmp_path / "none", data__packing=False, data__seq_len=512)
    lengths, gave_up = set[int](), list[int]()

    def watched(spec: Spec, *args: Any, **arguments: Any) -> TracedPass:
        try:
            lengths.add(spec.data.seq_len)
            return traced_pass(spec, *args, **arguments)
        except TooManyOperationsError:
            gave_up.append(spec.data.seq_len)
            raise

    monkeypatch.setattr(model_trace, "traced_pass", watched)
    trace = trace_model(spec, str(tmp_path), "fp32")
    assert gave_up == [512] and lengths == {512, *lengths_for(512, STEPS[0])}
    assert trace.note is not None and trace.note.startswith("rows of up to 16 tokens were traced")
    # The states of all tokens are kept for the backward pass.
    assert max(moment.peak_per_row for moment in trace.moments) > 512 * 64 * 4 * 4  # tokens, width, states, bytes
