"""The predicted peak of a worker's memory is the real one, and few layers stand for many."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from jobs.planning.memory import memory_of, piece_of_loss
from jobs.planning.strategy import Strategy
from jobs.preflight import model_trace
from jobs.preflight.model_trace import trace_model
from jobs.preflight.traced_pass import _linear, fake_model, traced_pass, with_adapter
from jobs.preflight.tracker import Tracker, watched
from jobs.training.loop import loss
from jobs.training.model.load import DTYPES, empty_model, model_config
from tests.support import tiny

ROOT = pathlib.Path(__file__).parents[4]
ONE_ROW = {"train__per_device_train_batch_size": 1, "eval__per_device_eval_batch_size": 1}
MEDIAN, WORST = 0.03, 0.05  # of the real peak


@pytest.mark.slow
@pytest.mark.timeout(1800)  # 42 s on an idle machine, but 600 on a slow and busy one that also compiles the optimizer
def test_predicted_peaks_are_those_of_real_steps() -> None:
    command = [sys.executable, "-m", "bench.planning", "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *records, last = map(json.loads, done.stdout.splitlines())
    assert len(records) == 12 and last["summary"]["failed"] == 0
    assert last["summary"]["median_error"] <= MEDIAN and last["summary"]["worst_error"] <= WORST, last
    assert all(one["predicted"] + one["reserve"] >= one["real"] for one in records), records


def config_dir(folder: pathlib.Path, **changes: Any) -> pathlib.Path:
    """Only config.json: of a Llama with six layers, unless changed."""
    config = {
        "model_type": "llama", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 6,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


MIXED = {
    "model_type": "gemma3_text", "head_dim": 16, "sliding_window": 16, "num_hidden_layers": 8,
    "layer_types": ["sliding_attention", "full_attention"] * 4,
}  # fmt: skip

# The first two layers are dense, the others mixtures of experts.
DENSE_FIRST = {
    "model_type": "deepseek_v3", "num_key_value_heads": 4, "first_k_dense_replace": 2, "moe_intermediate_size": 32,
    "n_routed_experts": 8, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2, "q_lora_rank": 32,
    "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16,
}  # fmt: skip


# An encoder and a decoder. Of T5's, the first layers have more parameters than the others.
BART = {
    "model_type": "bart", "d_model": 64, "decoder_attention_heads": 4, "encoder_attention_heads": 4,
    "encoder_ffn_dim": 128, "decoder_ffn_dim": 96, "decoder_layers": 7,
}  # fmt: skip
T5 = {
    "model_type": "t5", "d_model": 64, "d_kv": 16, "d_ff": 128, "num_heads": 4, "eos_token_id": 1,
    "decoder_start_token_id": 0,
}  # fmt: skip


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("changes", "traced", "classify"),
    [
        ({}, "3 of 6", False),
        ({}, "3 of 6", True),
        (MIXED, "6 of 8", False),
        (DENSE_FIRST, "5 of 6", False),
        (BART, "3 of 7", False),
        (BART, "6 of 13", True),
        (T5, "8 of 12", True),
    ],
    ids=["llama", "llama that classifies", "gemma3", "deepseek_v3", "decoder of bart", "bart", "t5"],
)
def test_repeated_layers_give_the_trace_of_all_layers(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    traced: str,
    classify: bool,
    checkpointing: bool,
) -> None:
    folder = config_dir(tmp_path / "model", **changes)
    given: dict[str, Any] = {"data__packing": False, "train__gradient_checkpointing": checkpointing}
    spec = tiny.spec_of(tmp_path, folder, tmp_path / "none", classify=classify, **given)
    few = trace_model(spec, str(folder), "fp32")
    assert few.note == f"{traced} layers were traced"
    monkeypatch.setattr(model_trace, "_stacks", lambda *_: ())
    every = trace_model(spec, str(folder), "fp32")
    assert replace(few, note=every.note, moments=(), moments_of_one_row=()) == replace(
        every, moments=(), moments_of_one_row=()
    )
    small = 32 * 8 if changes is DENSE_FIRST else 0  # bytes: each router keeps 32 more in the backward pass
    if changes is T5:  # its decoder's first temporaries, at one moment far from the peak
        small = max(moment.peak for moment in every.moments_of_one_row) // 50
    for moments, whole in ((few.moments, every.moments), (few.moments_of_one_row, every.moments_of_one_row)):
        assert [(one.kind, one.parameters) for one in moments] == [(one.kind, one.parameters) for one in whole]
        for name in ("live", "live_per_row", "peak", "peak_per_row"):
            values, expected = ([getattr(one, name) for one in part] for part in (moments, whole))
            assert values == pytest.approx(expected, rel=0, abs=small)


@pytest.mark.parametrize("method", ["lora", "prompt"])
def test_adapters_of_a_model_without_data_are_made_without_data(tmp_path: pathlib.Path, method: str) -> None:
    """For 80 large layers, drawing them took most of the time of a plan."""
    drawn = list[torch.Size]()

    class Draws(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            made = [one for one in tree_leaves(out) if isinstance(one, torch.Tensor) and one.is_floating_point()]
            drawn.extend(one.shape for one in made if one.device.type != "meta")
            return out

    folder = config_dir(tmp_path / "model")
    spec = tiny.spec_of(tmp_path, folder, tmp_path / "none", method=method)
    with Draws():  # type: ignore[no-untyped-call]
        model = with_adapter(spec, empty_model(spec, str(folder)), str(folder), set())
    assert drawn == [] and any(parameter.requires_grad for parameter in model.parameters())


def test_with_checkpointing_a_layer_of_experts_leaves_its_input_alone(tmp_path: pathlib.Path) -> None:
    experts = {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
    left = []
    for layers in (1, 2):
        folder = config_dir(tmp_path / "model", **experts, num_hidden_layers=layers)
        spec = tiny.spec_of(tmp_path, folder, tmp_path / "none", train__gradient_checkpointing=True)
        model = fake_model(spec, str(folder), (), DTYPES["fp32"], model_config(spec, str(folder)))
        traced = traced_pass(spec, model, rows=1)
        left.append(next(event.live for event in traced.events if event.kind == "logits"))
    tokens, width = spec.data.seq_len, 64
    assert left[1] - left[0] == pytest.approx(4 * tokens * width, rel=0.1)  # some bytes are numbers of a generator


def test_a_module_that_is_watched_writes_into_the_dict_that_it_is_given() -> None:
    class Writes(torch.nn.Linear):
        def forward(self, inputs: torch.Tensor, shared: dict[str, torch.Tensor]) -> torch.Tensor:  # type: ignore[override]
            shared["seen"] = inputs + shared["before"]
            return super().forward(inputs)

    model, inputs = Writes(2, 2), torch.ones(1, 2, requires_grad=True)
    tracker = Tracker(model.parameters())
    shared = {"before": inputs}
    with watched(model, tracker):
        model(inputs, shared)
    assert torch.equal(shared["seen"], torch.full((1, 2), 2.0))
    shared["before"].sum().backward()
    assert [event.kind for event in tracker.events] == ["enter", "leave"]


def test_a_model_whose_depth_is_set_in_another_way_is_traced_whole(tmp_path: pathlib.Path) -> None:
    blocks = {"model_type": "funnel", "d_model": 64, "n_head": 4, "d_head": 16, "d_inner": 128}
    (tmp_path / "config.json").write_text(json.dumps({**blocks, "vocab_size": 512, "block_sizes": [2, 2, 2]}))
    trace = trace_model(tiny.spec_of(tmp_path, tmp_path, tmp_path / "none", classify=True), str(tmp_path), "fp32")
    assert trace.note is not None and trace.note.startswith("all layers were traced")


@pytest.mark.parametrize(
    "config", [{**BART, "num_hidden_layers": 2, "decoder_layers": 2}, {**T5, "num_hidden_layers": 2}]
)
def test_a_classifier_that_takes_the_state_at_the_end_token_is_traced(
    tmp_path: pathlib.Path, config: dict[str, Any]
) -> None:
    """Which token that is, data decide; each row counts as having one."""
    folder = config_dir(tmp_path / "model", **config)
    labels = {"model__task": "sequence-classification", "data__labels": ["a", "b", "c"]}
    spec = tiny.spec_of(tmp_path, folder, tmp_path / "none", data__format="classification", **labels)
    for seen in (False, True):
        spec = spec.with_value("train.gradient_checkpointing", seen)
        trace = trace_model(spec, str(folder), "fp32")
        assert max(moment.peak_per_row for moment in trace.moments) > spec.data.seq_len * 64 * 4


def test_attention_keeps_no_matrix_of_all_pairs_of_tokens_on_gpus(tmp_path: pathlib.Path) -> None:
    """Neither with dropout, nor with values of another size than keys. On CPUs torch keeps them then."""

    def peak(on_gpu: bool, **changes: Any) -> int:
        folder = config_dir(tmp_path / "model", **changes)
        spec = tiny.spec_of(tmp_path, folder, tmp_path / "none", data__packing=False, data__seq_len=256)
        trace = trace_model(spec, str(folder), "fp32", on_gpu)
        return max(moment.peak_per_row for moment in trace.moments)

    plain = peak(False)
    assert peak(True) == peak(True, attention_dropout=0.1) == plain < 0.8 * peak(False, attention_dropout=0.1)
    unequal = DENSE_FIRST | {"v_head_dim": 8}
    assert peak(True, **unequal) < 0.9 * peak(False, **unequal)


def test_attention_is_counted_as_its_kernel_computes_it(tmp_path: pathlib.Path) -> None:
    """FLOPs of causal attention are those of a half of all pairs; with a mask, which packed rows need, of all pairs."""
    length, layers, heads, size = 256, 2, 4, 16
    products = 2 * layers * 2 * heads * size  # for each pair: with keys and with values

    def flops(kernel: str, packing: bool, **changes: Any) -> int:
        folder = config_dir(tmp_path / "model", num_hidden_layers=layers, **changes)
        spec = tiny.spec_of(
            tmp_path, folder, tmp_path / "none", model__attn_implementation=kernel, resources__gpus_per_worker=1,
            data__packing=packing, data__seq_len=length, **ONE_ROW,
        )  # fmt: skip
        return trace_model(spec, str(folder), "bf16", on_gpu=True).flops_per_row

    half, whole = flops("sdpa", packing=False), flops("sdpa", packing=True)
    assert whole - half == products * (length**2 - length * (length + 1) // 2)
    assert flops("flash_attention_2", packing=True) == flops("flash_attention_2", packing=False) == half
    mistral = {"model_type": "mistral", "sliding_window": 32}
    narrow = flops("flash_attention_2", packing=True, **mistral)
    assert whole - narrow == products * (length**2 - (32 * 33 // 2 + (length - 32) * 32))


def test_flash_attention_needs_no_mask_and_no_copies_of_keys(tmp_path: pathlib.Path) -> None:
    def peak(kernel: str) -> int:
        folder = config_dir(tmp_path / "model")
        spec = tiny.spec_of(
            tmp_path, folder, tmp_path / "none", model__attn_implementation=kernel, resources__gpus_per_worker=1,
            data__seq_len=256, **ONE_ROW,
        )  # fmt: skip
        return max(moment.peak_per_row for moment in trace_model(spec, str(folder), "bf16", True).moments)

    assert peak("flash_attention_2") < 0.9 * peak("sdpa")


def test_a_few_numbers_of_rows_give_any_other(tmp_path: pathlib.Path) -> None:
    folder = config_dir(tmp_path / "model", num_hidden_layers=2)
    spec = tiny.spec_of(tmp_path, folder, tmp_path / "none")
    trace = trace_model(spec, str(folder), "bf16")
    model = fake_model(spec, str(folder), (), DTYPES["bf16"], model_config(spec, str(folder)))
    one, five = (traced_pass(spec, model, rows) for rows in (1, 5))
    for rows, events, moments in ((1, one.events, trace.moments_of_one_row), (5, five.events, trace.moments)):
        assert [moment.live_at(rows) for moment in moments] == [event.live for event in events]
        peaks = [moment.peak_at(rows) for moment in moments if moment.kind != "loss"]
        assert peaks == [event.peak for event in events if event.kind != "loss"]
    most = memory_of(trace, Strategy(per_device_train_batch_size=5), 1, "cpu")
    assert most.activations + most.logits == pytest.approx(max(event.peak for event in five.events), rel=0.01)


@pytest.mark.parametrize(("vocabulary", "targets"), [(512, 100), (128_256, 8192), (3, 4), (50_000, 1)])
def test_pieces_of_the_loss_are_those_of_the_loop(vocabulary: int, targets: int) -> None:
    logits = torch.empty((1, targets, vocabulary), device="meta")
    pieces = [piece.numel() for piece, _, _ in loss._pieces(logits, logits[..., 0], logits[..., 0])]
    assert sum(pieces) == logits.numel() and max(pieces) == piece_of_loss(vocabulary, logits.numel())


def test_only_zero_3_adds_the_gradients_of_tied_weights_in_place() -> None:
    """A view, which the linear layer of the other stages has as its gradient, has a base that is still referred to."""

    def most_weights(linear: Callable[..., torch.Tensor]) -> int:
        with FakeTensorMode():
            weight = torch.nn.Parameter(torch.empty(1000, 32))
            rows = torch.nn.functional.embedding(torch.zeros(2, dtype=torch.long), weight)
            loss = linear(rows * 2, weight).sum()
            with Tracker([weight]) as tracker:
                loss.backward()
        return int(tracker.peak / (4 * weight.numel()))

    assert most_weights(torch.nn.functional.linear) == 3 and most_weights(_linear) == 2
