"""Exported files: sharded by a pure plan, written tensor by tensor, compared before they are believed."""

from __future__ import annotations

import json
import pathlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from bench.zoo.tiny import tiny_config
from cluster.errors import RunFailed
from jobs.model_files.directory import tensor_names
from jobs.model_files.tokenizer import load_tokenizer
from jobs.training.model.batch import Batch, model_logits
from jobs.training.model.export import (
    ONE_PROCESS_BYTES,
    Weights,
    check_same_logits,
    end_at,
    on_this_node,
    plan_shards,
    verify_export,
    write_config,
    write_weights,
)
from jobs.training.model.load import in_one_dtype, model_config, set_pad_token
from jobs.training.model.tensor_names import naming_of
from tests.support import tiny
from tests.support.counted import CountedFileSystem, counted_bytes


@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=40), most=st.integers(1, 100))
def test_shards_hold_every_tensor_once_in_order_and_keep_to_the_bound(sizes: list[int], most: int) -> None:
    named = [(f"t{number}", size) for number, size in enumerate(sizes)]
    shards = plan_shards(named, most)
    assert [name for _, names in shards for name in names] == [name for name, _ in named]
    of = dict(named)
    for _, names in shards:
        assert sum(of[name] for name in names) <= most or len(names) == 1
    files = [file for file, _ in shards]
    assert len(set(files)) == len(files)
    assert files == ["model.safetensors"] or files[0] == f"model-00001-of-{len(files):05d}.safetensors"


def test_a_model_written_in_many_files_is_read_back_the_same(tmp_path: pathlib.Path) -> None:
    source = tiny.save_model(tmp_path / "llama", "llama")
    model = transformers.AutoModelForCausalLM.from_pretrained(source)
    weights = Weights(model)
    out = str(tmp_path / "out")
    taken: list[str] = []

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in [*weights.parameters, *weights.buffers]:
            taken.append(name)
            yield name, tensor

    write_weights(out, weights.sizes, tensors(), max_shard_bytes=20_000)
    write_config(out, model, str(source), torch.float32)
    assert len(list(pathlib.Path(out).glob("*.safetensors"))) > 3
    assert "lm_head.weight" not in taken, "tied weights are written once"
    index = json.loads((pathlib.Path(out) / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(taken)
    again = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    ids = torch.arange(30)[None]
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model.eval()(ids).logits)


def test_at_most_one_file_is_in_memory(tmp_path: pathlib.Path) -> None:
    """Tensors are asked for one by one; those of a file are let go before the next file's first is taken."""
    import weakref

    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        nonlocal most
        for number in range(20):
            tensor = torch.full((1000,), float(number))
            alive.append(weakref.ref(tensor))
            most = max(most, sum(ref() is not None for ref in alive))
            yield f"t{number}", tensor
            del tensor

    write_weights(str(tmp_path), [(f"t{number}", 4000) for number in range(20)], tensors(), max_shard_bytes=8000)
    assert most <= 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_that_differ_by_more_than_rounding_fail_the_run(dtype: torch.dtype) -> None:
    living = torch.linspace(-3, 3, 100)
    assert check_same_logits(living, living + 1e-5, dtype) < 1e-4
    with pytest.raises(RunFailed, match="does not compute what the trained one does"):
        check_same_logits(living, living + 0.2, dtype)
    with pytest.raises(RunFailed):
        check_same_logits(living, torch.full((100,), float("nan")), dtype)


@pytest.mark.parametrize("sharded", [False, True])
def test_an_export_that_fails_its_check_leaves_nothing(tmp_path: pathlib.Path, sharded: bool) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    size, living, other = ONE_PROCESS_BYTES + sharded, [torch.ones(3)], [torch.zeros(3)]
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(RunFailed, match="does not compute what the trained one does"):
            verify_export(str(folder), torch.float32, size, living, lambda _: other, lambda *_: None, 0)
    finally:
        dist.destroy_process_group()
    assert not folder.exists()


@pytest.mark.usefixtures("own_protocols")
def test_ranks_of_one_node_fetch_an_export_from_a_url_once(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    content, ranks = b"x" * 100_000, 3
    CountedFileSystem().pipe_file("/run/model/model.safetensors", content)
    read, seen = threading.Barrier(ranks), []

    def all_read() -> None:
        read.wait(120)

    def rank() -> None:
        with on_this_node("counted:///run/model", all_read) as local:
            seen.append((pathlib.Path(local) / "model.safetensors").read_bytes() == content)

    with counted_bytes() as count:
        threads = [threading.Thread(target=rank) for _ in range(ranks)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert count() == len(content)
    assert seen == [True] * ranks
    assert not list((tmp_path / ".cache/fleetune/exports").iterdir())


@pytest.mark.parametrize(
    ("model_type", "inside", "published"),
    [
        ("qwen3_moe", "model.layers.0.mlp.experts.gate_up_proj", "model.layers.1.mlp.experts.3.up_proj.weight"),
        ("mixtral", "model.layers.0.mlp.experts.down_proj", "model.layers.0.block_sparse_moe.experts.0.w2.weight"),
        ("llama", "model.norm.weight", "model.norm.weight"),
        ("xlm-roberta", "lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),  # tied
    ],
)
def test_an_export_has_the_names_and_values_of_the_source(
    tmp_path: pathlib.Path, model_type: str, inside: str, published: str
) -> None:
    """transformers fuses the experts of a layer on loading; other programs know the published names only."""
    source, out = tmp_path / "source", str(tmp_path / "out")
    transformers.AutoModelForCausalLM.from_config(tiny_config(model_type)).save_pretrained(source)
    model = transformers.AutoModelForCausalLM.from_pretrained(source)
    weights = Weights(model)
    assert inside in weights.empty
    naming = naming_of(model, weights.empty, tensor_names(str(source)))
    tensors = {**dict(weights.parameters), **dict(weights.buffers)}
    write_weights(out, naming.sizes, naming.converted((name, tensors[name]) for name in naming.order), 20_000)
    found, expected = (
        {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}
        for folder in (pathlib.Path(out), source)
    )
    assert published in found
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert max(len(group.names) for group in naming.groups) == 1, "no two tensors have to be in memory together"


@pytest.mark.parametrize(("auto", "kept"), [("CausalLM", None), ("SequenceClassification", 3)])
def test_an_export_has_a_pad_token_of_ours_only_where_the_model_needs_it(
    tmp_path: pathlib.Path, auto: str, kept: int | None
) -> None:
    """A head that takes a row's last token looks for padding. PyTorch never trains a pad token's embedding."""
    source, out = tiny.save_model(tmp_path / "llama", "llama"), str(tmp_path / "out")
    config = transformers.AutoConfig.from_pretrained(source)
    config.pad_token_id = None
    config.save_pretrained(source)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    tokenizer.pad_token_id = 5
    tokenizer.save_pretrained(source)
    model = getattr(transformers, f"AutoModelFor{auto}").from_config(config)
    set_pad_token(model.config, 3)
    write_config(out, model, str(source), torch.float32)
    assert transformers.AutoConfig.from_pretrained(out).pad_token_id == kept
    assert model.config.pad_token_id == 3
    assert transformers.AutoTokenizer.from_pretrained(out).pad_token_id == (kept or 5)


def test_an_export_has_all_chat_templates_and_the_generation_config_of_the_source(tmp_path: pathlib.Path) -> None:
    """A tokenizer with several templates has a folder for them. A model that is built without weights has no config."""
    source, out = tiny.save_model(tmp_path / "llama", "llama"), str(tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    tokenizer.chat_template = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    tokenizer.save_pretrained(source)
    (source / "generation_config.json").write_text('{"eos_token_id": [2, 0], "temperature": 0.6, "do_sample": true}')
    config = transformers.AutoConfig.from_pretrained(source)
    write_config(out, transformers.AutoModelForCausalLM.from_config(config), str(source), torch.float32)
    written = transformers.AutoTokenizer.from_pretrained(out).chat_template
    assert written == tokenizer.chat_template
    generation = transformers.GenerationConfig.from_pretrained(out)
    assert (generation.eos_token_id, generation.temperature) == ([2, 0], 0.6)


@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
def test_settings_that_generation_ignores_do_not_end_an_export(tmp_path: pathlib.Path, name: str) -> None:
    """Released models have a temperature without sampling, which transformers refuses to save."""
    source, out = tiny.save_model(tmp_path / "llama", "llama"), str(tmp_path / "out")
    (source / "generation_config.json").unlink(missing_ok=True)
    file = source / name
    settings = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(settings | {"temperature": 0.7, "top_p": 0.9}))
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(source))
    write_config(out, model, str(source), torch.float32)
    generation = transformers.GenerationConfig.from_pretrained(out)
    assert transformers.AutoTokenizer.from_pretrained(source).eos_token_id in np.atleast_1d(generation.eos_token_id)
    assert name == "config.json" or generation.temperature == 0.7


def test_an_export_has_the_template_of_the_spec(tmp_path: pathlib.Path) -> None:
    source, out = tiny.save_model(tmp_path / "base", "llama"), tmp_path / "out"
    config = transformers.AutoConfig.from_pretrained(source)
    model = transformers.AutoModelForCausalLM.from_config(config)
    write_config(str(out), model, str(source), torch.float32, "{{ 'mine' }}")
    assert transformers.AutoTokenizer.from_pretrained(out).chat_template == "{{ 'mine' }}"
    assert load_tokenizer(str(source)).chat_template != "{{ 'mine' }}"


def test_an_export_of_a_checkpoint_with_transformers_own_names_keeps_those(tmp_path: pathlib.Path) -> None:
    model = transformers.AutoModelForCausalLM.from_config(tiny_config("qwen3_moe"))
    weights = Weights(model)
    assert [name for name, _ in naming_of(model, weights.empty, set(weights.empty)).sizes] == list(weights.empty)


@pytest.mark.parametrize("kind", ["llama", "bloom"])
def test_logits_of_few_columns_are_those_of_all_columns(tmp_path: pathlib.Path, kind: str) -> None:
    model = tiny.save_model(tmp_path / kind, kind)
    living = transformers.AutoModelForCausalLM.from_pretrained(model).eval()
    ids = torch.arange(40)[None]
    inputs = {"input_ids": ids, "position_ids": ids}
    whole = Batch(inputs, targets=ids + 1, columns=torch.arange(40))
    few = whole.with_few_columns(16)
    assert few.columns is not None and few.columns.tolist() == list(range(0, 40, 3))
    assert torch.equal(few.targets, whole.targets[:, few.columns])
    with torch.no_grad():
        logits, all_logits = (model_logits(living, batch, "causal-lm") for batch in (few, whole))
    torch.testing.assert_close(logits, all_logits[:, few.columns])


def test_a_type_that_keeps_weights_in_fp32_computes_in_the_dtype_of_the_others_as_in_training() -> None:
    model = transformers.AutoModelForSequenceClassification.from_config(tiny_config("deberta"))
    model = model.to(torch.bfloat16).eval()
    for name, parameter in model.named_parameters():  # as transformers loads them
        if name.endswith(("q_bias", "v_bias")):
            parameter.data = parameter.data.float()
    tokens = torch.tensor([[5, 6, 7, 8]])
    with pytest.raises(RuntimeError, match=r"scalar type|dtype"):
        model(input_ids=tokens)
    assert in_one_dtype(model, "bf16")(input_ids=tokens).logits.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("known", "eos", "after"), [(None, 7, 7), (5, 7, [7, 5]), ([5, 6], 7, [7, 5, 6]), ([5, 7], 7, [5, 7]), (5, None, 5)]
)
def test_generation_ends_at_the_token_with_which_the_data_ended(known: Any, eos: int | None, after: Any) -> None:
    generation = transformers.GenerationConfig(eos_token_id=known)
    end_at(generation, eos)
    assert generation.eos_token_id == after


def test_a_base_of_several_labels_for_each_text_becomes_a_classifier_of_one(tmp_path: pathlib.Path) -> None:
    tiny.save_model(tmp_path / "m", "bert")
    config = json.loads((tmp_path / "m/config.json").read_text()) | {"problem_type": "multi_label_classification"}
    (tmp_path / "m/config.json").write_text(json.dumps(config))
    spec = tiny.spec_of(tmp_path / "runs", tmp_path / "m", tmp_path / "t.jsonl", classify=True)
    assert model_config(spec, str(tmp_path / "m")).problem_type == "single_label_classification"
