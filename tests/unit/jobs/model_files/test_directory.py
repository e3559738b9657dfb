"""A directory that cannot be trained from is refused before a worker starts, with what to do."""

from __future__ import annotations

import errno
import json
import os
import struct
import threading
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from safetensors.numpy import save_file

from cluster.errors import DataError, StorageOutage
from jobs.model_files.directory import (
    check_model_dir,
    check_model_files,
    local_model_dir,
    safetensors_problem,
    weights_digest,
)
from jobs.model_files.without_weights import without_weights
from jobs.spec.finetune import Spec
from tests.support.counted import CountedFileSystem, counted_bytes
from tests.support.hub import empty_hub

pytestmark = pytest.mark.usefixtures("own_protocols")


def safetensors(path: Path, numbers: int = 4) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [numbers], "data_offsets": [0, 4 * numbers]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4 * numbers)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text("{}")
    safetensors(folder / "model.safetensors")
    return folder


def spec(path: str, *, chat: bool = False, seq_len: int = 64, task: str = "causal-lm", **more: Any) -> Spec:
    form = "chat" if chat else "text" if task == "causal-lm" else "classification"
    model = {"path": path, "task": task, **more.pop("model", {})}
    if form == "classification":
        model["num_labels"] = 2
    return Spec.model_validate({"model": model, "data": {"train": "/d", "format": form, "seq_len": seq_len}, **more})


def check(folder: Path | str, **asked: Any) -> None:
    check_model_files(str(folder), spec(str(folder), **asked))


def problem(folder: Path, **asked: Any) -> str:
    with pytest.raises(DataError) as caught:
        check(folder, **asked)
    return str(caught.value)


def change_config(folder: Path, **values: Any) -> None:
    (folder / "config.json").write_text(json.dumps(values))


def test_whole_directory_is_accepted(folder: Path) -> None:
    check(folder)


def test_missing_directory_and_file_are_refused(folder: Path) -> None:
    assert "no such directory" in problem(folder / "nope")
    assert "give the directory" in problem(folder / "config.json")


def test_config_must_be_there_and_be_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    assert "config.json cannot be read" in problem(folder)
    (folder / "config.json").unlink()
    assert "no config.json" in problem(folder)
    (folder / "adapter_config.json").write_text("{}")
    assert "this is an adapter, not a whole model" in problem(folder)
    tuned = {"peft_type": "PROMPT_TUNING", "base_model_name_or_path": "/base"}
    (folder / "adapter_config.json").write_text(json.dumps(tuned))
    assert "cannot be merged into a model: give the model that it is for (/base)" in problem(folder)


def test_an_adapter_beside_a_whole_model_is_refused_because_transformers_would_add_it(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    for part in ("transformers would add that adapter", "remove adapter_config.json", "merge_and_unload()"):
        assert part in problem(folder)


def test_directory_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "there are no weights" in problem(folder)
    (folder / "m.gguf").touch()
    assert "GGUF" in problem(folder)


def test_pickles_are_not_loaded_and_the_way_out_is_named(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "pickles (pytorch_model.bin)" in problem(folder) and "save_pretrained" in problem(folder)


def test_missing_shards_are_counted(folder: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "two.safetensors", "c": "three.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "2 of 3 weight files" in problem(folder) and "three.safetensors" in problem(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    assert "index.json cannot be read" in problem(folder)


def test_download_that_was_cut_and_lfs_pointer_are_found(folder: Path) -> None:
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for content in (whole[:-1], whole[:5], b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:00"):
        weights.write_bytes(content)
        assert "model.safetensors" in problem(folder) and "fetch it again" in problem(folder)
    weights.write_bytes(struct.pack("<Q", 4) + b"oops")
    assert safetensors_problem(str(weights)) == "has no readable header: fetch it again"


def test_model_with_code_of_its_own_is_refused(folder: Path) -> None:
    change_config(folder, model_type="mystery", auto_map={"AutoModel": "modeling.Mystery"})
    assert "trust_remote_code is off" in problem(folder)


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "openai-gpt"])
def test_model_that_transformers_has_too_does_not_need_its_own_code(folder: Path, model_type: str) -> None:
    """Some types lie in a folder of transformers with another name."""
    change_config(folder, model_type=model_type, auto_map={"AutoModel": "modeling.Mine"})
    check(folder)


def test_rows_longer_than_learned_positions_are_refused(folder: Path) -> None:
    change_config(folder, model_type="bert", max_position_embeddings=512)
    assert "512 positions, but data.seq_len is 1024: set data.seq_len to 512" in problem(folder, seq_len=1024)
    change_config(folder, model_type="roberta", max_position_embeddings=514, pad_token_id=1)
    check(folder, seq_len=512)
    assert "512 positions" in problem(folder, seq_len=513)
    change_config(folder, model_type="llama", max_position_embeddings=512, rope_parameters={"rope_theta": 1e4})
    check(folder, seq_len=1024)
    change_config(folder, model_type="whisper", max_source_positions=1500, max_target_positions=448)
    assert "448 positions, but data.seq_len is 449" in problem(folder, seq_len=449)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"hidden_size": 64}, "config.json has no model_type"),
        ({"model_type": "llama", "num_attention_heads": 0}, "config.json has num_attention_heads: 0, expected a whole"),
        ({"model_type": "llama", "vocab_size": "big"}, 'config.json has vocab_size: "big", expected a whole'),
        ({"model_type": "gpt2", "n_layer": 1.5}, "config.json has n_layer: 1.5, expected a whole"),
        ({"model_type": "gpt2", "n_embd": True}, "config.json has n_embd: true, expected a whole"),
    ],
)
def test_sizes_that_no_model_has_are_refused(folder: Path, config: dict[str, Any], said: str) -> None:
    change_config(folder, **config)
    assert said in problem(folder)


@pytest.mark.parametrize(
    ("config", "most"),
    [
        ({"model_type": "longformer", "pad_token_id": 1}, 510),
        ({"model_type": "roberta-prelayernorm"}, 510),
        ({"model_type": "xlm-roberta", "pad_token_id": 0}, 511),
        ({"model_type": "mpnet", "pad_token_id": 0}, 510),
    ],
)
def test_positions_behind_the_padding_are_counted(folder: Path, config: dict[str, Any], most: int) -> None:
    change_config(folder, max_position_embeddings=512, **config)
    check(folder, task="sequence-classification", seq_len=most)
    assert f"set data.seq_len to {most}" in problem(folder, task="sequence-classification", seq_len=most + 1)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "deberta-v2", "max_position_embeddings": 512, "position_biased_input": False},
        {"model_type": "t5", "n_positions": 512},
        {"model_type": "esm", "max_position_embeddings": 512, "position_embedding_type": "rotary"},
        {"model_type": "gpt_neox", "max_position_embeddings": 512, "rotary_pct": 0.25, "rotary_emb_base": 10000},
        {"model_type": "modernbert", "max_position_embeddings": 512, "global_rope_theta": 160000.0},
    ],
)
def test_models_without_a_table_of_positions_take_longer_rows(folder: Path, config: dict[str, Any]) -> None:
    change_config(folder, **config)
    check(folder, task="sequence-classification", seq_len=1024)


def test_quantised_weights_are_refused_with_what_to_do(folder: Path) -> None:
    change_config(folder, model_type="llama", quantization_config={"quant_method": "fp8"})
    assert "quantised (fp8)" in problem(folder) and "release that is not quantised" in problem(folder)


@pytest.mark.parametrize(
    ("labels", "refused"),
    [({"0": "no", "1": "yes"}, None), ({"0": "a", "1": "b", "2": "c"}, r"3 classes (a, b, c), but the spec has 2")],
)
def test_a_classifier_of_other_classes_is_refused(folder: Path, labels: dict[str, str], refused: str | None) -> None:
    change_config(folder, model_type="bert", architectures=["BertForSequenceClassification"], id2label=labels)
    asked: dict[str, Any] = {"task": "sequence-classification"}
    if refused is None:
        check(folder, **asked)
    else:
        assert refused in problem(folder, **asked)


@pytest.mark.parametrize(
    ("model_type", "kernel", "supported"),
    [
        ("mpnet", "sdpa", "eager"),
        ("mpnet", "flash_attention_2", "eager"),
        ("gpt_oss", "sdpa", "eager, flash_attention_2"),
        ("data2vec-text", "flash_attention_2", None),
        ("bert", "sdpa", None),
        ("bert", None, None),
        ("mpnet", None, None),
    ],
)
def test_kernel_that_the_model_does_not_support_is_refused_with_those_it_does(
    folder: Path, model_type: str, kernel: str | None, supported: str | None
) -> None:
    change_config(folder, model_type=model_type)
    asked: dict[str, Any] = {"task": "sequence-classification", "model": {"attn_implementation": kernel}}
    if supported is None:
        check(folder, **asked)
    else:
        said = problem(folder, **asked)
        assert f"does not support model.attn_implementation: {kernel}" in said
        assert said.endswith(f"choose one of: {supported}")


def test_model_type_without_a_class_for_the_task_is_refused(folder: Path) -> None:
    change_config(folder, model_type="mpnet")
    assert "no class for causal-lm of model type mpnet: it has sequence-classification" in problem(folder)
    change_config(folder, model_type="vit")
    assert "nor for the other tasks" in problem(folder)
    change_config(folder, model_type="mystery")
    assert "does not know model type mystery: install a release" in problem(folder)


def test_a_language_model_that_always_reads_both_ways_is_refused(folder: Path) -> None:
    change_config(folder, model_type="cpmant")
    assert "CpmAntForCausalLM reads a text in both directions" in problem(folder)


def test_gradient_checkpointing_is_refused_where_the_model_has_none(folder: Path) -> None:
    change_config(folder, model_type="squeezebert")
    asked = {"task": "sequence-classification", "train": {"gradient_checkpointing": True}}
    assert "does not support train.gradient_checkpointing" in problem(folder, **asked)
    change_config(folder, model_type="llama")
    check(folder, train={"gradient_checkpointing": True})


def test_a_classifier_that_takes_no_mask_is_trained_row_by_row(folder: Path) -> None:
    change_config(folder, model_type="fnet")
    asked = {"task": "sequence-classification", "train": {"per_device_train_batch_size": 2}}
    assert problem(folder, **asked).endswith("Set train.per_device_train_batch_size (2) to 1")
    check(folder, task="sequence-classification", train={"per_device_train_batch_size": 1})


def test_directory_without_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").touch()
    assert "there is no tokenizer" in problem(folder)
    (folder / "merges.txt").touch()
    check(folder)


def test_chat_needs_a_template_wherever_it_is_kept(folder: Path) -> None:
    assert "no chat template" in problem(folder, chat=True)
    (folder / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    check(folder, chat=True)
    (folder / "tokenizer_config.json").unlink()
    (folder / "chat_template.jinja").touch()
    check(folder, chat=True)


def test_hub_id_is_not_looked_up_and_url_is(folder: Path) -> None:
    check_model_dir(spec("org/name"))
    with pytest.raises(DataError, match=r"memory://no/such: there is no config\.json"):
        check_model_dir(spec("memory://no/such"))
    check_model_dir(spec(f"file://{folder}"))


@pytest.fixture
def url(folder: Path) -> Any:
    memory = fsspec.filesystem("memory")
    memory.put(f"{folder}/", "/models/m/", recursive=True)
    yield "memory://models/m"
    memory.rm("/models", recursive=True)


def test_local_directory_is_used_where_it_is(folder: Path) -> None:
    assert local_model_dir(str(folder)) == local_model_dir(f"file://{folder}") == str(folder)


def test_model_at_a_url_is_fetched_once_and_again_when_it_changes(url: str, tmp_path: Path) -> None:
    first = local_model_dir(url, str(tmp_path / "cache"))
    check(first)
    (Path(first) / "marker").touch()
    assert (Path(local_model_dir(url, str(tmp_path / "cache"))) / "marker").exists()
    fsspec.filesystem("memory").pipe_file("/models/m/added.json", b"{}")
    assert local_model_dir(url, str(tmp_path / "cache")) != first


def test_weights_of_equal_size_that_are_uploaded_again_to_the_hub_are_fetched_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, cache = empty_hub(monkeypatch), str(tmp_path / "cache")
    hub.put(f"{folder}/", "/owner/m/", recursive=True)
    first = local_model_dir("hf://owner/m", cache)
    assert local_model_dir("hf://owner/m", cache) == first
    changed = (folder / "model.safetensors").read_bytes()[:-1] + b"\1"
    hub.pipe_file("/owner/m/model.safetensors", changed)
    again = Path(local_model_dir("hf://owner/m", cache))
    assert (again / "model.safetensors").read_bytes() == changed


def test_workers_of_one_machine_share_one_fetch(url: str, tmp_path: Path) -> None:
    found: list[str] = []
    cache = tmp_path / "cache"
    threads = [threading.Thread(target=lambda: found.append(local_model_dir(url, str(cache)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len(set(found)) == 1
    assert [str(path) for path in cache.iterdir() if path.is_dir()] == [found[0]]


def test_what_a_killed_fetch_has_left_is_removed_by_the_next(url: str, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    target = local_model_dir(url, str(cache))
    os.rename(target, f"{target}.part")
    Path(f"{target}.part", "half").touch()
    assert local_model_dir(url, str(cache)) == target
    assert [str(path) for path in cache.iterdir() if path.is_dir()] == [target]
    assert not Path(target, "half").exists()


def test_a_model_that_cannot_be_listed_now_is_no_wrong_input(url: str, tmp_path: Path) -> None:
    def reset(self: Any, path: str, **named: Any) -> Any:
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MemoryFileSystem, "find", reset)
        for fetch in (local_model_dir, without_weights):
            with pytest.raises(StorageOutage, match=f"cannot list {url}: ConnectionResetError"):
                fetch(url, str(tmp_path))


def test_url_with_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="memory://nothing"):
        local_model_dir("memory://nothing", str(tmp_path))


def test_a_driver_reads_no_weights_and_still_finds_what_is_wrong_with_them(folder: Path, tmp_path: Path) -> None:
    weights = (folder / "model.safetensors").stat().st_size
    content = (folder / "model.safetensors").read_bytes()
    small = sum(file.stat().st_size for file in folder.iterdir()) - weights
    header = 8 + int.from_bytes(content[:8], "little")
    store = CountedFileSystem()
    store.put(f"{folder}/", "/models/m/", recursive=True)
    with counted_bytes() as count:
        local = without_weights("counted:///models/m", str(tmp_path / "cache"))
        assert count() == small + header + 8, "the length of the header is read first"
    assert (Path(local) / "model.safetensors").stat().st_size == weights
    check(local)
    store.pipe_file("/models/m/model.safetensors", content[:-1])
    with pytest.raises(DataError, match="but its header says"):
        check(without_weights("counted:///models/m", str(tmp_path / "cache")))


def test_weights_are_told_apart_by_what_every_tensor_begins_with(tmp_path: Path) -> None:
    def saved(name: str, files: dict[str, dict[str, Any]]) -> str:
        folder = tmp_path / name
        folder.mkdir()
        for file, tensors in files.items():
            save_file(tensors, folder / file)
        weight_map = {tensor: file for file, tensors in files.items() for tensor in tensors}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        return weights_digest(str(folder))

    first, second = np.arange(5_000, dtype=np.float32), np.ones((2, 3), np.float32)
    whole = saved("one", {"model.safetensors": {"a": first, "b": second}})
    assert saved("two", {"1.safetensors": {"b": second}, "2.safetensors": {"a": first}}) == whole
    for name, other in {"value": second * 2, "type": second.astype(np.float16), "shape": second.T.copy()}.items():
        assert saved(name, {"model.safetensors": {"a": first, "b": other}}) != whole
    assert saved("names", {"model.safetensors": {"b": first, "a": second}}) != whole
