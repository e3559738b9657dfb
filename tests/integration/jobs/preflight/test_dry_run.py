"""What a model type cannot do is seen by the driver, on the model without weights; what can be set for it, is set."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch
import transformers

from bench.zoo.tiny import END, save_tokenizer, tiny_config
from jobs.errors import DataError
from jobs.preflight.dry_run import check_model_runs
from jobs.training.model.load import load_model, model_config, set_pad_token
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
    ],
)
def test_what_transformers_refuses_is_refused_before_workers_start(
    tmp_path: pathlib.Path, model_type: str, classify: bool, changes: dict[str, Any], expected: str
) -> None:
    folder = saved(tmp_path, model_type, **changes)
    with pytest.raises(DataError) as caught:
        check_model_runs(spec(folder, classify), str(folder))
    assert expected in str(caught.value)


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
