"""ZeRO-3 on two workers against plain PyTorch, with really pretrained weights and real text.

A few steps show what real weights add. That many steps stay the same is shown with tiny models (test_losses.py).
"""

from __future__ import annotations

import pathlib

import pytest

from bench.models import dialogues, minilm, reviews, smollm2_slice
from tests.support import tiny
from tests.support.gangs import Case, case_of, run_gang
from tests.support.reference import plain_losses

STEPS = 6


def minilm_with_head(folder: pathlib.Path) -> pathlib.Path:
    """MiniLM with a drawn head of two classes, saved, so that both sides start from the same weights; no dropout."""
    import torch
    import transformers

    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        minilm(), num_labels=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    model.save_pretrained(folder / "with-head")
    transformers.AutoTokenizer.from_pretrained(minilm()).save_pretrained(folder / "with-head")
    return folder / "with-head"


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    folder = tmp_path_factory.mktemp("real")
    sentences = tiny.spec_of(
        folder, minilm_with_head(folder), reviews(2000), classify=True, model__num_labels=2,
        data__labels=["negative", "positive"], data__seq_len=128, train__global_batch_size=8,
        train__per_device_train_batch_size=2, train__learning_rate=1e-4, train__weight_decay=0.01,
        train__max_steps=STEPS,
    )  # fmt: skip
    chats = tiny.spec_of(
        folder, smollm2_slice(4), dialogues(), data__format="chat", data__seq_len=128, train__global_batch_size=4,
        train__per_device_train_batch_size=2, train__learning_rate=1e-4, train__weight_decay=0.01,
        train__max_steps=STEPS,
    )  # fmt: skip
    cases = [case_of(folder, "minilm", sentences), case_of(folder, "smollm2", chats)]
    run_gang(folder, 2, cases)
    return {case.name: case for case in cases}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["minilm", "smollm2"])
def test_real_weights_train_as_in_plain_pytorch(cases: dict[str, Case], name: str) -> None:
    """Weights, tokenizers and text as they are published: an encoder with a head, and a language model with its
    template.
    """
    case = cases[name]
    expected = plain_losses(case.spec, case.prepared, STEPS)
    assert len(case.record("loss")) == STEPS
    assert case.record("loss") == pytest.approx(expected.loss, rel=1e-4)
    assert case.record("grad_norm") == pytest.approx(expected.grad_norm, rel=2e-3)
