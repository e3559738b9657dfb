"""An adapter that is written and read back around a freshly loaded base computes the same, whatever the head is."""

from __future__ import annotations

import datetime
import gc
import pathlib
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from bench.zoo.tiny import save_tokenizer, tiny_config
from cluster.errors import DataError, InputError, RunFailed, SpecError, StorageError
from jobs.model_files.directory import tensor_shapes
from jobs.model_files.lora_targets import SAME_NAMES, targets_problem
from jobs.run.find import export_source
from jobs.run.outcome import Outcome, Status, write_outcome
from jobs.run.paths import JobPaths
from jobs.run.record import open_run
from jobs.spec.load import load_spec
from jobs.training.checkpoint.to_model import export_run, merge_run, write_merged
from jobs.training.model.adapters import adapted, load_model, own_copies, trained_names, with_adapter_of, write_adapter
from jobs.training.model.batch import Batch, model_logits
from jobs.training.model.load import (
    decays,
    load_base,
    model_class,
    model_config,
    parameter_groups,
    without_flash_attention,
)
from tests.support import tiny
from tests.support.cutstorage import changes


@pytest.mark.parametrize("method", ["lora", "prompt"])
@pytest.mark.parametrize(
    ("model_type", "lacking", "full"),
    [
        ("roberta", "classifier", {"classifier"}),  # a head of two layers
        ("distilbert", "classifier", {"classifier", "pre_classifier"}),  # two heads, one's name ends with the other's
        ("bert", "pooler", {"bert.pooler.dense", "classifier"}),  # new weights inside of the base model
    ],
)
def test_what_the_model_directory_lacks_is_trained_fully_and_in_the_adapter(
    tmp_path: pathlib.Path, model_type: str, lacking: str, full: set[str], method: str
) -> None:
    folder = tmp_path / model_type
    tiny_config(model_type).save_pretrained(folder)
    save_tokenizer(folder)
    spec = tiny.spec_of(folder, folder, folder / "rows.jsonl", classify=True, method=method)
    model_class(spec).from_config(model_config(spec, str(folder))).save_pretrained(folder)
    weights = folder / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(weights).items() if lacking not in name}
    save_file(kept, weights, metadata={"format": "pt"})

    model = load_model(spec, str(folder), "fp32", 0).eval()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert own_copies(trained_names(model)) == full
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    write_adapter(str(tmp_path / "adapter"), model, trained.items(), str(folder))
    base, missing = load_base(spec.model_copy(update={"seed": 99}), str(folder), "fp32", 0)
    assert missing and all(lacking in name for name in missing)
    again = with_adapter_of(base, str(tmp_path / "adapter"), in_fp32=False).eval()
    row = torch.arange(3, 23)[None]
    batch = Batch({"input_ids": row, "attention_mask": torch.ones_like(row)}, row)
    with torch.no_grad():
        first, second = (model_logits(one, batch, spec.model.task) for one in (model, again))
    assert torch.equal(first, second)


@pytest.mark.parametrize("model_type", ["bert", "canine", "git"])
def test_adapters_in_recomputed_layers_get_gradients(tmp_path: pathlib.Path, model_type: str) -> None:
    """CANINE has many embeddings, none of which transformers knows as its input. GIT adds its embeddings in place."""
    tiny_config(model_type).save_pretrained(tmp_path)
    row = torch.arange(3, 35)[None]
    batch = Batch({"input_ids": row, "attention_mask": torch.ones_like(row)}, row, row[0] - 3)
    with_gradients = []
    for checkpointing in (False, True):
        changes: dict[str, Any] = {"method": "lora", "train__gradient_checkpointing": checkpointing}
        spec = tiny.spec_of(tmp_path, tmp_path, tmp_path / "rows.jsonl", classify=model_type != "git", **changes)
        if not checkpointing:
            model_class(spec).from_config(model_config(spec, str(tmp_path))).save_pretrained(tmp_path)
        model = load_model(spec, str(tmp_path), "fp32", 0).train()
        model_logits(model, batch, spec.model.task).sum().backward()
        with_gradients.append({name for name, one in model.named_parameters() if one.grad is not None})
    assert any("encoder.layer.0.attention" in name for name in with_gradients[0])
    assert with_gradients[1] == with_gradients[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "lora", "lora__rank": 1024}, r"lora\.rank: 1024 is more than the smaller side .*\(32\)"),
        ({"method": "lora", "lora__target_modules": ["all-linear", "q_prj"]}, "no linear module q_prj"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path: pathlib.Path, changes: dict[str, Any], said: str) -> None:
    model = tiny.save_model(tmp_path / "llama", "llama")
    spec = tiny.spec_of(tmp_path, model, tmp_path / "text.jsonl", data__packing=False, **changes)
    with pytest.raises(SpecError, match=said):
        load_model(spec, str(model), "fp32", 0)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bloom", "bert", "encoder"])
def test_a_module_that_gets_an_adapter_is_known_from_the_names_of_the_weights(
    tmp_path: pathlib.Path, kind: str
) -> None:
    folder, classify = tiny.save_model(tmp_path / kind, kind), kind in ("bert", "encoder")
    spec = tiny.spec_of(tmp_path, folder, tmp_path / "rows.jsonl", classify=classify, method="lora")
    adapted_model: Any = load_model(spec, str(folder), "fp32", 0)
    modules = {name.partition(".lora_A")[0] for name in trained_names(adapted_model) if ".lora_A" in name}
    wanted = [*modules, *(name.rpartition(".")[2] for name in modules)]
    assert modules and targets_problem(wanted, adapted_model.config.model_type, tensor_shapes(str(folder))) is None


def test_transformers_renames_no_weights_of_the_types_whose_names_are_compared() -> None:
    known = set(transformers.models.auto.configuration_auto.CONFIG_MAPPING)
    assert known >= SAME_NAMES
    assert {name for name in SAME_NAMES if get_checkpoint_conversion_mapping(name)} == set()


def test_an_adapter_in_bf16_is_read_back_in_bf16(tmp_path: pathlib.Path) -> None:
    """PEFT would compute it in fp32, and the logits of a far trained one would differ by more than an export allows."""
    base = tiny.save_model(tmp_path / "base", "llama")
    spec = tiny.spec_of(tmp_path, base, tmp_path / "rows.jsonl", method="lora")
    model = load_model(spec, str(base), "bf16", 0).eval()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(0.3 * torch.randn_like(parameter))
    write_adapter(str(tmp_path / "adapter"), model, trained.items(), str(base))
    row = torch.arange(3, 23)[None]
    batch = Batch({"input_ids": row, "attention_mask": torch.ones_like(row)}, row, row[0] - 3)
    logits = []
    for in_fp32 in (False, True):
        again = with_adapter_of(load_base(spec, str(base), "bf16", 0)[0], str(tmp_path / "adapter"), in_fp32=in_fp32)
        with torch.no_grad():
            logits.append(model_logits(again.eval(), batch, spec.model.task))
    with torch.no_grad():
        living = model_logits(model, batch, spec.model.task)
    assert torch.equal(logits[0], living) and not torch.equal(logits[1], living)


def run_with_adapter(folder: pathlib.Path, value: float = 0.1, **changes: Any) -> JobPaths:
    """A run that has succeeded with a LoRA adapter, all of whose weights are `value`."""
    base = tiny.save_model(folder / "base", "llama")
    spec = tiny.spec_of(folder, base, folder / "rows.jsonl", method="lora", **changes)
    model = load_model(without_flash_attention(spec), str(base), "fp32", 0)
    trained = [(name, torch.full_like(one, value)) for name, one in model.named_parameters() if one.requires_grad]
    paths = open_run(spec)
    write_adapter(paths.model, model, trained, str(base))
    now = datetime.datetime.now(datetime.UTC)
    write_outcome(paths, Outcome(status=Status.SUCCEEDED, step=3, model_path=paths.model, ended_at=now))
    return paths


def test_a_merge_needs_no_flash_attention_and_says_what_it_was_made_from(tmp_path: pathlib.Path) -> None:
    assert not transformers.utils.is_flash_attn_2_available(), "this test needs a host without flash attention"
    kernel: dict[str, Any] = {"model__attn_implementation": "flash_attention_2", "data__packing": False}
    paths = run_with_adapter(tmp_path, **kernel, resources__gpus_per_worker=1)
    merged = pathlib.Path(merge_run(paths.root, say=lambda text: None))
    assert (merged / "made_from").read_text() == export_source(paths)
    assert not [path for path in merged.iterdir() if path.is_symlink()]
    transformers.AutoModelForCausalLM.from_pretrained(merged)
    elsewhere = pathlib.Path(merge_run(paths.root, str(tmp_path / "elsewhere"), say=lambda text: None))
    assert {path.name for path in merged.iterdir()} - {path.name for path in elsewhere.iterdir()} == {"made_from"}


def test_a_model_with_few_tokens_and_short_rows_is_merged(tmp_path: pathlib.Path) -> None:
    config = transformers.GPT2Config(
        vocab_size=20, n_embd=32, n_layer=1, n_head=2, n_positions=16, bos_token_id=1, eos_token_id=0
    )
    base, adapter, merged = (tmp_path / name for name in ("base", "adapter", "merged"))
    transformers.GPT2LMHeadModel(config).save_pretrained(base)
    spec = tiny.spec_of(tmp_path, base, tmp_path / "rows.jsonl", method="lora", data__seq_len=16)
    model = load_model(spec, str(base), "fp32", 0)
    trained = [(name, one) for name, one in model.named_parameters() if one.requires_grad]
    write_adapter(str(adapter), model, trained, str(base))
    (logits,) = write_merged(spec, str(base), str(adapter), "fp32", 0, str(merged), str(tmp_path / "beside"))
    assert logits.shape == (1, 16, 20)


@pytest.mark.usefixtures("own_protocols")
def test_an_export_that_fails_leaves_what_was_there(tmp_path: pathlib.Path) -> None:
    paths = run_with_adapter(tmp_path, value=float("nan"))
    merged, other = pathlib.Path(paths.merged), tmp_path / "other"
    for folder, name in ((merged, "config.json"), (merged, "model.safetensors"), (other, "mine.safetensors")):
        folder.mkdir(exist_ok=True)
        (folder / name).write_text("{}")  # of an earlier merge, and of the user
    for to in (None, str(other)):
        with pytest.raises(RunFailed, match="does not compute what the trained one does"):
            merge_run(paths.root, to, say=lambda text: None)
    with changes(refused="tokenizer"), pytest.raises(StorageError, match="Permission denied"):
        export_run(paths.root, f"cut://{other}", say=lambda text: None)
    assert {path.name: path.read_text() for path in merged.iterdir()} == {
        "config.json": "{}",
        "model.safetensors": "{}",
    }
    assert not pathlib.Path(f"{merged}.new").exists()
    assert [path.name for path in other.iterdir()] == ["mine.safetensors"]


def test_a_search_has_no_model_of_its_own(tmp_path: pathlib.Path) -> None:
    (tmp_path / "spec.json").write_text('{"kind": "sweep"}')
    for export in (export_run, merge_run):
        with pytest.raises(InputError, match=r"is a sweep, which has no model of its own\. Export one of its trials"):
            export(str(tmp_path), say=lambda text: None)


def test_no_export_writes_over_its_sources_or_beside_another_model(tmp_path: pathlib.Path) -> None:
    paths = run_with_adapter(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/adapter_config.json").write_text("{}")
    pathlib.Path(paths.merged).mkdir()
    base, other = f"{tmp_path}/base/", f"{tmp_path}/other"
    own, model, adapter = "own directory", r"holds a model already \(config.json\)", "holds an adapter already"
    for export, to, reason in (
        (merge_run, paths.model, own),
        (export_run, paths.merged, own),
        (merge_run, base, model),
        (export_run, base, model),
        (merge_run, other, adapter),
        (export_run, other, adapter),
    ):
        before = sorted(pathlib.Path(to).iterdir())
        with pytest.raises(DataError, match=f"{reason}.*give --to another directory"):
            export(paths.root, to, say=lambda text: None)
        assert sorted(pathlib.Path(to).iterdir()) == before


def test_a_merge_frees_its_first_model_before_the_second_is_read(tmp_path: pathlib.Path) -> None:
    paths = run_with_adapter(tmp_path)
    spec, base = load_spec(paths.spec), str(tmp_path / "base")
    gc.collect()
    before = count_of_models()
    write_merged(spec, base, paths.model, "fp32", 0, paths.merged, str(tmp_path / "beside"))
    assert count_of_models() <= before


def count_of_models() -> int:
    return sum(issubclass(type(one), transformers.PreTrainedModel) for one in gc.get_objects())


def test_a_router_that_returns_more_than_a_product_gets_no_adapter(tmp_path: pathlib.Path) -> None:
    """PEFT would add the product of the adapter to it, and the forward pass would fail."""
    folder = tmp_path / "phimoe"
    transformers.AutoModelForCausalLM.from_config(tiny_config("phimoe")).save_pretrained(folder)
    save_tokenizer(folder)
    spec = tiny.spec_of(tmp_path / "runs", folder, tmp_path / "t.jsonl", method="lora")
    model = load_model(spec, str(folder), "fp32", 0)
    adapted = {name.partition(".lora_")[0] for name, _ in model.named_parameters() if ".lora_" in name}
    assert adapted and not any("router" in name for name in adapted)
    assert model(input_ids=torch.tensor([[1, 2, 3, 4]])).logits.isfinite().all()


def test_what_text_does_not_pass_through_gets_no_adapter_and_does_not_decay(tmp_path: pathlib.Path) -> None:
    sizes = {"intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Gemma3Config(
        text_config={"hidden_size": 32, "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 64, **sizes},
        vision_config={"hidden_size": 16, "image_size": 8, "patch_size": 4, **sizes},
        mm_tokens_per_image=4,
    )
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    trained = {id(parameter): name for name, parameter in model.named_parameters()}
    (decaying, others) = parameter_groups(model, 0.1)
    names = {trained[id(parameter)] for parameter in decaying["params"]}
    assert names and all(name.startswith("model.language_model.") for name in names)
    assert sum(len(group["params"]) for group in (decaying, others)) == len(trained)
    spec = tiny.spec_of(tmp_path, tmp_path / "model", tmp_path / "text.jsonl", data__packing=False, method="lora")
    adapters = trained_names(adapted(spec, model, str(tmp_path)))
    assert adapters and all(name.startswith("model.language_model.") for name in adapters)


def test_norms_and_biases_do_not_decay_whatever_their_shape() -> None:
    assert decays("model.layers.0.mlp.down_proj.weight", (4, 2)) and decays("model.abnormal.weight", (4, 2))
    for name in ("q_norm.weight", "mlp.experts.gate_up_proj_bias", "relative_attention_bias.weight", "ln.LayerNorm.w"):
        assert not decays(f"model.layers.0.{name}", (4, 2)), name
    assert not decays("model.layers.0.gamma", (4,))
