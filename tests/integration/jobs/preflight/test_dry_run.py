"""What a model type cannot do is seen by the driver, on the model without weights; what can be set for it, is set."""

from __future__ import annotations

import json
import pathlib
import re
from typing import Any

import pytest
import torch
import transformers

from bench.zoo.tiny import END, save_tokenizer, tiny_config
from cluster.errors import DataError, InputError
from jobs.preflight.dry_run import check_model_runs
from jobs.preflight.plan import plan_job
from jobs.preflight.ready import ready_data
from jobs.spec.method import ChosenMethod
from jobs.training.model.adapters import adapted, load_model, trained_names
from jobs.training.model.load import (
    empty_model,
    lacking_and_unused,
    load_base,
    model_class,
    model_config,
    set_pad_token,
)
from jobs.training.model.pooling import with_one_end
from tests.support import tiny


def saved(folder: pathlib.Path, model_type: str, ends: bool = True, **changes: Any) -> pathlib.Path:
    """A model directory without weights."""
    config = tiny_config(model_type)
    for name, value in changes.items():
        setattr(config, name, value)
    config.save_pretrained(folder)
    save_tokenizer(folder) if ends else tiny.save_tokenizer(folder)
    return folder


def spec(folder: pathlib.Path, classify: bool = False) -> Any:
    return tiny.spec_of(folder, folder, folder / "rows.jsonl", classify=classify)


def test_models_of_all_shapes_run_without_weights(tmp_path: pathlib.Path) -> None:
    for model_type, classify in (
        ("llama", False),
        ("mixtral", False),
        ("mamba", False),
        ("bart", True),
        ("fnet", True),
    ):
        folder = saved(tmp_path / model_type, model_type)
        check_model_runs(spec(folder, classify), str(folder))


def test_flash_attention_may_be_installed_on_the_workers_only(tmp_path: pathlib.Path) -> None:
    assert not transformers.utils.is_flash_attn_2_available(), "this test needs a host without flash attention"
    folder = saved(tmp_path, "llama")
    kernel = {
        "model__attn_implementation": "flash_attention_2",
        "data__packing": False,
        "resources__gpus_per_worker": 1,
    }
    check_model_runs(tiny.spec_of(folder, folder, folder / "rows.jsonl", **kernel), str(folder))


@pytest.mark.parametrize(
    ("model_type", "classify", "changes", "expected"),
    [
        ("xmod", False, {"default_language": None}, "cannot be trained on rows of text: ValueError: Input language"),
        ("layoutlmv2", True, {}, "cannot build this model: ImportError: LayoutLMv2Model requires the detectron2"),
        ("gemma4_unified_assistant", False, {}, "inputs_embeds and shared_kv_states cannot be None"),
        ("t5", True, {"eos_token_id": None}, "needs eos_token_id in config.json"),
        ("llama", False, {"num_key_value_heads": 3}, "do not fit each other: RuntimeError: The size of tensor a (4)"),
        ("qwen2", True, {"num_key_value_heads": 3}, "do not fit each other"),
    ],
)
def test_what_transformers_refuses_is_refused_before_workers_start(
    tmp_path: pathlib.Path, model_type: str, classify: bool, changes: dict[str, Any], expected: str
) -> None:
    folder = saved(tmp_path, model_type, **changes)
    with pytest.raises(DataError) as caught:
        check_model_runs(spec(folder, classify), str(folder))
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [(1, "layers.1.input_layernorm.weight is in the weights, and not"), (3, "layers.2."), (-1, "must be at least 1")],
)
@pytest.mark.parametrize("classify", [False, True])
def test_a_number_of_layers_that_is_not_that_of_the_weights_is_refused(
    tmp_path: pathlib.Path, layers: int, expected: str, classify: bool
) -> None:
    """With fewer layers a part of the model would be dropped, and with more a part would have random weights."""
    folder = tiny.save_model(tmp_path / "llama", "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": layers}))
    with pytest.raises(DataError, match=re.escape(expected)):
        check_model_runs(spec(folder, classify), str(folder))


@pytest.mark.parametrize(
    ("model_type", "head"), [("llama", "lm_head.weight"), ("bert", "cls.predictions.decoder.weight")]
)
def test_a_language_model_without_its_head_is_refused_and_a_classification_gets_a_new_one(
    tmp_path: pathlib.Path, model_type: str, head: str
) -> None:
    folder = saved(tmp_path, model_type, tie_word_embeddings=False)
    config = transformers.AutoConfig.from_pretrained(folder)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    with pytest.raises(DataError, match=f"the weights have no {re.escape(head)}.* saved by AutoModelForCausalLM"):
        check_model_runs(spec(folder), str(folder))
    check_model_runs(spec(folder, classify=True), str(folder))


def test_a_tied_head_is_not_missing(tmp_path: pathlib.Path) -> None:
    folder = saved(tmp_path, "llama", tie_word_embeddings=True)
    transformers.AutoModel.from_config(transformers.AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    check_model_runs(spec(folder), str(folder))


def test_weights_with_other_shapes_than_the_configuration_are_refused(tmp_path: pathlib.Path) -> None:
    folder = tiny.save_model(tmp_path / "llama", "llama")
    check_model_runs(spec(folder), str(folder))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 96}))
    with pytest.raises(
        DataError, match=r"down_proj.weight is 32 x 64 in the weights, but 32 x 96 according to config.json"
    ):
        check_model_runs(spec(folder), str(folder))


def test_tokens_that_the_model_does_not_have_are_refused_before_workers_start(tmp_path: pathlib.Path) -> None:
    folder = tiny.save_model(tmp_path / "llama", "llama")
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.add_tokens([f"<extra-{number}>" for number in range(300)])  # none of them is in the data
    tokenizer.save_pretrained(folder)
    rows = tiny.write_text(tmp_path / "rows.jsonl", 40)
    ready_data(tiny.spec_of(tmp_path, folder, rows), "plain", lambda *said, **data: None)
    rows.write_text(rows.read_text() + '{"text": "a film <extra-299>"}\n')
    with pytest.raises(DataError, match=r"makes token \d+ of this data, but the model has 512 tokens"):
        ready_data(tiny.spec_of(tmp_path, folder, rows), "plain", lambda *said, **data: None)


@pytest.mark.parametrize(
    ("model_type", "classify", "changes", "expected"),
    [
        (
            "llama", False, {"method": "lora", "lora__target_modules": ["q_proj", "query", "proj"]},
            "lora.target_modules: the model has no linear module query, proj: it has q_proj, k_proj, v_proj, o_proj, "
            "gate_proj, up_proj, down_proj. Name some of them, or leave it out (all-linear)",
        ),
        (
            "llama", False, {"method": "lora", "lora__target_modules": ["lm_head"]}, "no linear module lm_head",
        ),
        (
            "bert", True, {"method": "lora", "lora__target_modules": ["classifier"]}, "no linear module classifier",
        ),
        (
            "llama", True, {"method": "prompt"},
            "method: prompt cannot train LlamaForSequenceClassification: its head looks for the last token of a text",
        ),
        (
            "bart", True, {"method": "prompt"},
            "method: prompt cannot train BartForSequenceClassification: its head looks for the last token of a text",
        ),
    ],
)  # fmt: skip
def test_a_method_that_does_not_fit_the_model_is_refused_before_workers_start(
    tmp_path: pathlib.Path, model_type: str, classify: bool, changes: dict[str, Any], expected: str
) -> None:
    folder = saved(tmp_path, model_type)
    with pytest.raises(InputError) as caught:
        check_model_runs(tiny.spec_of(folder, folder, folder / "rows.jsonl", classify=classify, **changes), str(folder))
    assert expected in str(caught.value)


@pytest.mark.parametrize("method", ["lora", "prompt"])
@pytest.mark.parametrize(("model_type", "head"), [("roberta", "lm_head"), ("bert", "cls.predictions")])
def test_an_adapter_of_a_language_model_whose_head_is_missing_and_tied_is_refused(
    tmp_path: pathlib.Path, model_type: str, head: str, method: str
) -> None:
    folder = saved(tmp_path / model_type, model_type)
    asked = spec(folder).model_copy(update={"method": ChosenMethod(kind=method)})
    whole = model_class(asked).from_config(model_config(asked, str(folder)))
    whole.base_model.save_pretrained(folder)
    assert lacking_and_unused(asked, str(folder))[0] == load_base(asked, str(folder), "fp32", END)[1] != set()
    expected = f"weights of {head} are missing, and method: {method} cannot train them, because {head}\\."
    with pytest.raises(DataError, match=f"{expected}.* is tied .* method: full, or a model that was saved with {head}"):
        check_model_runs(asked, str(folder))
    if method == "lora":
        with pytest.raises(DataError, match=f"^model.path {folder}: weights of {head} are missing"):
            plan_job(asked)
    whole.save_pretrained(folder)
    check_model_runs(asked, str(folder))


def test_all_linear_leaves_out_what_mamba_s_kernels_read_without_its_adapter(tmp_path: pathlib.Path) -> None:
    folder = saved(tmp_path, "mamba")
    made = tiny.spec_of(folder, folder, folder / "rows.jsonl", method="lora")
    check_model_runs(made, str(folder))
    names = trained_names(adapted(made, empty_model(made, str(folder)), str(folder)))
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in names} == {"in_proj", "x_proj"}


def test_models_of_all_shapes_take_an_adapter(tmp_path: pathlib.Path) -> None:
    for model_type, classify in (("llama", True), ("gpt2", True), ("roberta", True), ("distilbert", True)):
        folder = saved(tmp_path / model_type, model_type)
        made = tiny.spec_of(folder, folder, folder / "rows.jsonl", classify=classify, method="lora")
        check_model_runs(made, str(folder))
        names = trained_names(adapted(made, empty_model(made, str(folder)), str(folder)))
        heads = {name.partition(".modules_to_save")[0] for name in names if ".lora_" not in name}
        expected = {"distilbert": {"classifier", "pre_classifier"}, "roberta": {"classifier"}}
        assert heads == expected.get(model_type, {"score"}), model_type
        assert not [name for name in names if ".lora_" in name and name.startswith(tuple(heads))]


def test_a_head_that_reads_the_end_of_a_text_needs_a_tokenizer_that_writes_it(tmp_path: pathlib.Path) -> None:
    folder = saved(tmp_path, "bart", ends=False)
    with pytest.raises(DataError, match="reads the state at the end-of-text token 0, but the tokenizer does not write"):
        check_model_runs(spec(folder, True), str(folder))


def test_each_row_has_one_end_of_text_before_its_padding() -> None:
    ids = torch.tensor([[5, END, 6, END, 9, 9], [7, END, END, END, END, END], [9, 9, 9, 9, 9, 9]])
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]])
    rows = with_one_end({"input_ids": ids, "attention_mask": mask}, END, pad_token_id=9)["input_ids"]
    assert rows.tolist() == [[5, 9, 6, END, 9, 9], [7, END, 9, 9, 9, 9], [9, 9, 9, 9, 9, END]]
    behind = torch.tensor([[5, END, 6, END, 3, 9]])  # 3 is the token of a language
    assert with_one_end({"input_ids": behind, "attention_mask": behind != 9}, END, 9)["input_ids"].tolist() == [
        [5, 9, 6, END, 3, 9]
    ]
    padded_with_end = with_one_end({"input_ids": ids, "attention_mask": mask}, END, pad_token_id=END)["input_ids"]
    assert (padded_with_end == END).sum(1).tolist() == [1, 1, 1]


def test_an_encoder_that_is_trained_as_a_language_model_does_not_see_what_it_has_to_predict(
    tmp_path: pathlib.Path,
) -> None:
    folder = saved(tmp_path, "camembert")
    asked = spec(folder)
    model = transformers.AutoModelForCausalLM.from_config(model_config(asked, str(folder)))
    model.save_pretrained(folder)
    loaded: Any = load_model(asked, str(folder), "fp32", END).eval()
    ids = torch.arange(3, 15)[None]
    other = ids.clone()
    other[0, -1] = 99
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits[0, :-1], loaded(other).logits[0, :-1])


def test_rows_are_filled_with_a_token_that_the_model_knows() -> None:
    config = tiny_config("codegen")
    assert not hasattr(config, "pad_token_id")
    assert set_pad_token(config, 5) == config.pad_token_id == 5
    config = tiny_config("llama")
    config.pad_token_id = -1
    assert set_pad_token(config, 5) == 5
    config.pad_token_id = 7
    assert set_pad_token(config, 5) == 7
