"""What a gang computes under ZeRO-3 is what plain PyTorch computes in one process."""

from __future__ import annotations

import pathlib
from dataclasses import replace

import numpy as np
import pytest

from jobs.storage.journal import read_journal
from tests.support import tiny
from tests.support.gangs import Case, case_of, run_gang
from tests.support.reference import plain_losses
from tests.support.reload_logits import reloaded_logits

STEPS = 20


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """All small jobs, trained on two workers in one gang and on one worker in another."""
    folder = tmp_path_factory.mktemp("losses")
    llama, gpt2, bert, bloom = (tiny.save_model(folder / kind, kind) for kind in ("llama", "gpt2", "bert", "bloom"))
    text = tiny.write_text(folder / "text.jsonl", 400)
    labelled = tiny.write_labelled(folder / "labelled.jsonl", 200, 3)
    batch = {"train__global_batch_size": 8}
    small = {**batch, "train__max_steps": 6}
    specs = {
        "llama": tiny.spec_of(folder, llama, text, train__per_device_train_batch_size=2, **batch),
        "gpt2": tiny.spec_of(folder, gpt2, text, train__per_device_train_batch_size=4, **batch),
        "bert": tiny.spec_of(folder, bert, labelled, train__per_device_train_batch_size=4, classify=True, **batch),
        "unpacked": tiny.spec_of(
            folder, llama, text, train__per_device_train_batch_size=4, data__packing=False, **small
        ),
        "1x4": tiny.spec_of(folder, llama, text, train__per_device_train_batch_size=1, **small),
        "4x1": tiny.spec_of(folder, llama, text, train__per_device_train_batch_size=4, **small),
        "7 rows": tiny.spec_of(
            folder, llama, text, train__per_device_train_batch_size=2, train__global_batch_size=7, train__max_steps=6
        ),
        "stage 1": tiny.spec_of(
            folder, llama, text, train__per_device_train_batch_size=4, train__zero__stage=1, **small
        ),
        "stage 2": tiny.spec_of(
            folder, llama, text, train__per_device_train_batch_size=4, train__zero__stage=2, **small
        ),
        "stage 2, optimizer on the host": tiny.spec_of(
            folder,
            llama,
            text,
            train__per_device_train_batch_size=2,
            train__zero__stage=2,
            train__zero__offload_optimizer="cpu",
            **small,
        ),
        "all on the host": tiny.spec_of(
            folder,
            llama,
            text,
            train__per_device_train_batch_size=2,
            train__zero__offload_optimizer="cpu",
            train__zero__offload_param="cpu",
            **small,
        ),
        "recomputed": tiny.spec_of(
            folder, llama, text, train__per_device_train_batch_size=4, train__gradient_checkpointing=True, **small
        ),
        "bloom": tiny.spec_of(
            folder, bloom, text, train__per_device_train_batch_size=4, model__attn_implementation="eager", **small
        ),
        "bf16": tiny.spec_of(folder, llama, text, train__per_device_train_batch_size=4, train__bf16=True, **small),
    }
    poisoned = {"some skipped": (3, 4), "all skipped": tuple(range(1, 7))}
    on_two = [case_of(folder, name, spec) for name, spec in specs.items()]
    on_two += [replace(case_of(folder, name, specs["4x1"]), poisoned=steps) for name, steps in poisoned.items()]
    run_gang(folder, 2, on_two, with_export=frozenset({"llama", "gpt2", "bert", "bf16", "stage 2"}))
    alone = specs["unpacked"].model_copy(
        update={"resources": specs["unpacked"].resources.model_copy(update={"num_workers": 1})}
    )
    on_one = case_of(folder, "unpacked on one", alone)
    run_gang(folder, 1, [on_one])
    return {case.name: case for case in [*on_two, on_one]}


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_zero3_on_two_workers_gives_the_losses_of_plain_pytorch(cases: dict[str, Case], name: str) -> None:
    """The time is that of all runs of the file: three architectures, and all ways to run a job."""
    case = cases[name]
    expected = plain_losses(case.spec, case.prepared, STEPS)
    assert len(expected.loss) == STEPS
    assert case.record("loss") == pytest.approx(expected.loss, rel=1e-4)
    assert case.record("grad_norm") == pytest.approx(expected.grad_norm, rel=1e-3)
    assert case.record("learning_rate") == pytest.approx(expected.learning_rate, rel=1e-9)
    assert min(expected.loss) < expected.loss[0]


def test_accumulating_four_times_one_equals_once_four(cases: dict[str, Case]) -> None:
    assert cases["1x4"].record("loss") == pytest.approx(cases["4x1"].record("loss"), rel=1e-5)
    assert cases["1x4"].record("grad_norm") == pytest.approx(cases["4x1"].record("grad_norm"), rel=1e-4)


def test_very_uneven_lengths_give_the_same_loss_on_one_and_two_workers(cases: dict[str, Case]) -> None:
    lengths = cases["unpacked"].prepared.split("train").index.num_tokens
    assert lengths.max() > 10 * lengths.min()
    assert cases["unpacked"].record("loss") == pytest.approx(cases["unpacked on one"].record("loss"), rel=1e-5)


WAYS = ["7 rows", "stage 1", "stage 2", "stage 2, optimizer on the host", "all on the host", "recomputed", "unpacked"]


@pytest.mark.parametrize("name", [*WAYS, "bloom"])
def test_the_way_it_is_run_does_not_change_the_loss(cases: dict[str, Case], name: str) -> None:
    case = cases[name]
    expected = plain_losses(case.spec, case.prepared, 6)
    assert case.record("loss") == pytest.approx(expected.loss, rel=1e-4)
    assert case.record("grad_norm") == pytest.approx(expected.grad_norm, rel=1e-3)


def test_a_model_that_would_mix_packed_samples_trains_them_apart_and_says_so(cases: dict[str, Case]) -> None:
    """Bloom takes no positions. That its losses are right all the same is shown above."""
    said = {
        name: [event["message"] for event in read_journal(cases[name].paths.events) if event["kind"] == "warning"]
        for name in ("bloom", "llama", "gpt2")
    }
    assert any("not proved that a model of type bloom keeps packed samples apart" in one for one in said["bloom"])
    assert cases["bloom"].prepared.manifest.splits["train"][0].samples > len(cases["bloom"].prepared.split("train"))
    assert said["llama"] == said["gpt2"] == []


def test_bf16_stays_near_fp32(cases: dict[str, Case]) -> None:
    loss, exact = cases["bf16"].record("loss"), cases["4x1"].record("loss")
    assert loss == pytest.approx(exact, rel=2e-2)
    assert loss != exact


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_exported_model_gives_the_trained_models_logits_in_a_new_process(cases: dict[str, Case], name: str) -> None:
    case = cases[name]
    reloaded = reloaded_logits(case, case.paths.model)
    np.testing.assert_allclose(reloaded, np.load(case.logits_file), rtol=1e-4, atol=1e-5)


def test_steps_with_gradients_that_are_not_finite_are_skipped_and_told(cases: dict[str, Case]) -> None:
    case, whole = cases["some skipped"], cases["4x1"]
    told = [event for event in read_journal(case.paths.events) if event["data"].get("skipped")]
    assert [(event["data"]["step"], event["data"]["skipped"]) for event in told] == [(3, "gradients"), (4, "gradients")]
    assert told[0]["message"] == "step 3 is skipped and changes nothing: its gradients are not finite"
    assert case.record("loss")[:3] == pytest.approx(whole.record("loss")[:3], rel=1e-6)
    assert case.record("loss")[3:] != pytest.approx(whole.record("loss")[3:], rel=1e-6)
    assert [norm is None for norm in case.record("grad_norm")] == [False, False, True, True, False, False]


def test_a_run_of_which_no_step_changed_the_weights_fails(cases: dict[str, Case]) -> None:
    assert cases["all skipped"].failure.startswith("none of 6 steps changed the weights")


def test_no_pickle_lies_in_an_exported_model(cases: dict[str, Case]) -> None:
    names = {path.name for path in pathlib.Path(cases["bf16"].paths.model).iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl", ".pth"))]
