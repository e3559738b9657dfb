"""Packed samples do not see each other, a model for which that is not so is found out, and packed equals unpacked."""

from __future__ import annotations

import pathlib
from typing import Any

import pyarrow as pa
import pytest
import torch
import transformers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertLMHeadModel,
    XLNetConfig,
    XLNetForSequenceClassification,
)

from bench.zoo.tiny import tiny_config
from jobs.data.prepared import IGNORE_INDEX, ROW_SCHEMA
from jobs.spec.finetune import Task
from jobs.training.loop.loss import loss_sum
from jobs.training.model.batch import collate, model_logits
from jobs.training.model.isolation import later_tokens_are_unseen, packed_samples_are_isolated, padding_is_ignored
from jobs.training.model.load import model_config
from tests.support import tiny
from tests.support.reference import samples_of

CPU = torch.device("cpu")
PAD = 0
Positions = torch.Tensor | None
LENGTHS = [[7, 1, 20], [30], [2, 2, 2, 13]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    folder = tmp_path_factory.mktemp("models")
    kinds = {kind: tiny.save_model(folder / kind, kind) for kind in ("llama", "gpt2", "bloom")}
    torch.manual_seed(0)
    config = tiny_config("roberta")
    config.is_decoder = True
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder / "roberta")
    return {**kinds, "roberta": folder / "roberta"}


def loaded(folder: pathlib.Path, **arguments: Any) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **arguments)


def isolated(model: Any, rows: int = 2, seq_len: int = 64) -> bool:
    return packed_samples_are_isolated(model, PAD, CPU, rows, seq_len)


def table_of(rows: list[list[int]], labels: list[list[int]], lengths: list[list[int]]) -> pa.Table:
    samples = [list(range(len(row))) for row in lengths]
    columns = {"input_ids": rows, "labels": labels, "lengths": lengths, "sample_ids": samples}
    return pa.table(columns, schema=ROW_SCHEMA)


@pytest.fixture(scope="module")
def packed_rows() -> pa.Table:
    """Rows of random tokens, of which one in three (and the first one of each sample) is no target."""
    draw = torch.Generator().manual_seed(1)
    rows, labels = [], []
    for lengths in LENGTHS:
        ids = torch.randint(512, (sum(lengths),), generator=draw)
        label = ids.masked_fill(torch.rand(len(ids), generator=draw) < 1 / 3, IGNORE_INDEX)
        label[torch.tensor([0, *lengths[:-1]]).cumsum(0)] = IGNORE_INDEX
        rows.append(ids.tolist())
        labels.append(label.tolist())
    return table_of(rows, labels, LENGTHS)


class Wrapped(torch.nn.Module):
    """A model with something done to what goes in or comes out."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        self.config = inner.config


class LosesPositions(Wrapped):
    """As a model that has no place for positions."""

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
        return self.inner(input_ids=input_ids, use_cache=use_cache)


class Whispers(Wrapped):
    """Adds a trace of the row's first token to all logits."""

    def forward(self, input_ids: torch.Tensor, position_ids: Positions = None, use_cache: bool = False) -> Any:
        out = self.inner(input_ids=input_ids, position_ids=position_ids, use_cache=use_cache)
        out.logits = out.logits + 1e-7 * self.inner.get_input_embeddings()(input_ids[:, :1]).mean(-1, keepdim=True)
        return out


class CountsOn(Wrapped):
    """Keeps samples apart by a mask of its own, but their positions run on through the row."""

    def forward(self, input_ids: torch.Tensor, position_ids: Positions = None, use_cache: bool = False) -> Any:
        if position_ids is None:  # each sample has a row of its own
            return self.inner(input_ids=input_ids, use_cache=use_cache)
        sample = (position_ids == 0).cumsum(-1)
        apart = sample[:, :, None] == sample[:, None, :]
        mask = (apart & torch.ones_like(apart).tril())[:, None]
        return self.inner(input_ids=input_ids, attention_mask=mask, use_cache=use_cache)


class LooksAtTheFirstRow(Wrapped):
    """Takes the borders of the first row for those of all."""

    def forward(self, input_ids: torch.Tensor, position_ids: Positions = None, use_cache: bool = False) -> Any:
        same = None if position_ids is None else position_ids[:1].expand_as(position_ids)
        return self.inner(input_ids=input_ids, position_ids=same, use_cache=use_cache)


class SaysOneThing(Wrapped):
    """The same logits, whatever it reads."""

    def forward(self, input_ids: torch.Tensor, position_ids: Positions = None, use_cache: bool = False) -> Any:
        out = self.inner(input_ids=input_ids, position_ids=position_ids, use_cache=use_cache)
        out.logits = torch.ones_like(out.logits)
        return out


class Engine(torch.nn.Module):
    """The model inside, as DeepSpeed has it: everything is handed on."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self.module(*inputs, **named)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_llama_and_gpt2_keep_packed_samples_apart(folders: dict[str, pathlib.Path], kind: str, attention: str) -> None:
    model = loaded(folders[kind], attn_implementation=attention)
    assert all(isolated(model, rows, seq_len) for rows in (1, 2, 8) for seq_len in (8, 63, 256))
    assert isolated(Engine(model))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_half_precision_is_no_reason_to_unpack(folders: dict[str, pathlib.Path], kind: str) -> None:
    assert isolated(loaded(folders[kind]).to(torch.bfloat16))
    assert isolated(loaded(folders[kind]).to(torch.float16))


def test_bloom_which_takes_no_positions_is_found_leaking(folders: dict[str, pathlib.Path]) -> None:
    assert not isolated(loaded(folders["bloom"]))
    assert not isolated(Engine(loaded(folders["bloom"])))


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("planted", [LosesPositions, Whispers, SaysOneThing])
def test_a_planted_leak_is_found(folders: dict[str, pathlib.Path], planted: type[Wrapped], rows: int) -> None:
    assert not isolated(planted(loaded(folders["llama"])), rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_positions_that_run_on_through_the_row_are_found(folders: dict[str, pathlib.Path], dtype: torch.dtype) -> None:
    assert not isolated(CountsOn(loaded(folders["gpt2"]).to(dtype)))


def test_borders_of_one_row_used_for_all_rows_are_found(folders: dict[str, pathlib.Path]) -> None:
    model = LooksAtTheFirstRow(loaded(folders["llama"]))
    assert isolated(model, rows=1)
    assert not isolated(model, rows=2)


class CountsPadding(Wrapped):
    """As a model that takes padding for text."""

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
        out = self.inner(input_ids=input_ids, use_cache=use_cache)
        out.logits = out.logits + (input_ids == PAD).sum(-1)[:, None, None] * torch.linspace(0, 0.1, 512)
        return out


def test_padding_that_changes_logits_is_found(folders: dict[str, pathlib.Path]) -> None:
    assert padding_is_ignored(loaded(folders["bloom"]), PAD, CPU, rows=2, seq_len=64)
    assert not padding_is_ignored(CountsPadding(loaded(folders["llama"])), PAD, CPU, rows=2, seq_len=64)


def test_a_model_that_sees_later_tokens_is_found() -> None:
    sizes = {
        "vocab_size": 64,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    for is_decoder in (False, True):
        bert = BertLMHeadModel(BertConfig(is_decoder=is_decoder, **sizes))
        assert later_tokens_are_unseen(bert, PAD, CPU, rows=2, seq_len=64) is is_decoder


@pytest.mark.parametrize("kind", ["bert", "xlm", "xlnet"])
def test_a_type_that_reads_both_ways_is_set_to_read_one_way(tmp_path: pathlib.Path, kind: str) -> None:
    config = tiny_config(kind)
    config.save_pretrained(tmp_path)
    spec = tiny.spec_of(tmp_path, tmp_path, tmp_path / "text.jsonl")
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(model_config(spec, str(tmp_path)))
    assert later_tokens_are_unseen(model, PAD, CPU, rows=2, seq_len=64)


def test_a_classifier_that_reads_its_padding_is_found() -> None:
    """XLNet's head takes the last place of a row, padding or not."""
    sizes = {"vocab_size": 64, "num_labels": 3, "pad_token_id": 0}
    xlnet = XLNetForSequenceClassification(XLNetConfig(d_model=16, n_layer=1, n_head=2, d_inner=32, **sizes))
    bert = BertForSequenceClassification(
        BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, **sizes)
    )
    assert padding_is_ignored(bert, 0, CPU, rows=2, seq_len=64, task="sequence-classification")
    assert not padding_is_ignored(xlnet, 0, CPU, rows=2, seq_len=64, task="sequence-classification")


@pytest.mark.parametrize("seq_len", [8, 11, 16, 64, 200])
def test_a_classifier_whose_positions_are_all_used_is_not_given_more(seq_len: int) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=64, num_labels=3, pad_token_id=0, max_position_embeddings=seq_len, **sizes)
    bert = BertForSequenceClassification(config)
    assert padding_is_ignored(bert, 0, CPU, rows=2, seq_len=seq_len, task="sequence-classification")


@pytest.mark.parametrize("training", [True, False])
def test_the_check_leaves_the_model_and_the_random_numbers_as_they_were(
    folders: dict[str, pathlib.Path], training: bool
) -> None:
    model = loaded(folders["gpt2"], attn_pdrop=0.5, resid_pdrop=0.5).train(training)
    random = torch.get_rng_state()
    assert isolated(model)
    assert model.training is training and model.transformer.h[0].training is training
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_packed_rows_give_the_loss_and_the_gradients_of_unpacked_ones(
    folders: dict[str, pathlib.Path], packed_rows: pa.Table, kind: str
) -> None:
    model = loaded(folders[kind])
    losses, gradients = [], []
    for unpack in (False, True):
        batch = collate(packed_rows, "causal-lm", PAD, CPU, unpack)
        assert len(batch.targets) == (8 if unpack else 3)
        loss = loss_sum(model_logits(model, batch, "causal-lm"), batch.targets)
        model.zero_grad()
        loss.backward()
        losses.append(loss.item())
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for name, packed in gradients[0].items():
        unpacked = gradients[1][name]
        assert (packed - unpacked).norm() <= 1e-5 * unpacked.norm(), name


def test_roberta_which_counts_from_another_position_is_found(folders: dict[str, pathlib.Path]) -> None:
    assert not isolated(loaded(folders["roberta"]))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bloom", "roberta"])
def test_unpacked_rows_give_the_loss_of_each_sample_alone(
    folders: dict[str, pathlib.Path], packed_rows: pa.Table, kind: str
) -> None:
    model = loaded(folders[kind])
    expected = torch.zeros(())
    for ids, labels in (sample for row in packed_rows.to_pylist() for sample in samples_of(row)):
        logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
        expected += torch.nn.functional.cross_entropy(
            logits, torch.tensor(labels[1:], dtype=torch.int64), reduction="sum"
        )
    batch = collate(packed_rows, "causal-lm", PAD, CPU, unpack=True)
    loss = loss_sum(model_logits(model, batch, "causal-lm"), batch.targets)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    if kind == "bloom":
        packed = collate(packed_rows, "causal-lm", PAD, CPU)
        leaking = loss_sum(model_logits(model, packed, "causal-lm"), packed.targets)
        assert leaking.item() != pytest.approx(expected.item(), rel=1e-3)


def test_unpacking_cuts_tokens_and_targets_along() -> None:
    rows = table_of(
        [[10, 11, 12, 20, 30, 31], [40, 41, 42, 43]],
        [[-100, 11, 12, -100, -100, 31], [-100, -100, 42, 43]],
        [[3, 1, 2], [4]],
    )
    batch = collate(rows, "causal-lm", PAD, CPU, unpack=True)
    assert batch.inputs["input_ids"].tolist() == [[10, 11, 12, 0], [20, 0, 0, 0], [30, 31, 0, 0], [40, 41, 42, 43]]
    assert "position_ids" not in batch.inputs, "each type knows where it begins to count"
    assert batch.columns is not None and batch.columns.tolist() == [0, 1, 2]
    assert batch.targets.tolist() == [[11, 12, -100], [-100, -100, -100], [31, -100, -100], [-100, 42, 43]]
    packed = collate(rows, "causal-lm", PAD, CPU)
    assert packed.inputs["position_ids"].tolist() == [[0, 1, 2, 0, 0, 1], [0, 1, 2, 3, 4, 5]]
    real = [targets[targets != IGNORE_INDEX].tolist() for targets in (packed.targets, batch.targets)]
    assert real[0] == real[1] == [11, 12, 31, 42, 43]


def test_unpacking_leaves_alone_what_is_not_packed() -> None:
    single = table_of([[5, 6, 7], [8, 9]], [[-100, 6, 7], [-100, 9]], [[3], [2]])
    classes = table_of([[5, 6, 7], [8, 9]], [[1], [0]], [[3], [2]])
    cases: list[tuple[pa.Table, Task]] = [(single, "causal-lm"), (single[:0], "causal-lm")]
    cases.append((classes, "sequence-classification"))
    for rows, task in cases:
        plain, unpacked = (collate(rows, task, PAD, CPU, unpack) for unpack in (False, True))
        assert torch.equal(plain.targets, unpacked.targets)
        assert all(torch.equal(value, unpacked.inputs[name]) for name, value in plain.inputs.items())


def test_a_worker_without_rows_gets_a_loss_of_nothing(folders: dict[str, pathlib.Path], packed_rows: pa.Table) -> None:
    batch = collate(packed_rows[:0], "causal-lm", PAD, CPU, unpack=True)
    loss = loss_sum(model_logits(loaded(folders["bloom"]), batch, "causal-lm"), batch.targets)
    loss.backward()
    assert loss.item() == 0.0
