"""Classify sentences with a model that a run has exported.

    python examples/classify.py MODEL_DIR "sentence" ...

prints label, probability and sentence, one a line.
"""

from __future__ import annotations

import os
import sys
import warnings


def classify(model_dir: str, sentences: list[str]) -> list[tuple[str, float]]:
    """The likeliest label of each sentence, and its probability."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_dir)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(model_dir).eval()
    inputs = tokenizer(sentences, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        best = model(**inputs).logits.float().softmax(-1).max(-1)
    labels = [model.config.id2label[number] for number in best.indices.tolist()]
    return list(zip(labels, best.values.tolist(), strict=True))


def main() -> None:
    if len(sys.argv) < 3:
        sys.exit('usage: python examples/classify.py MODEL_DIR "sentence" ...')
    warnings.simplefilter("ignore")
    model_dir, *sentences = sys.argv[1:]
    if not os.path.isdir(model_dir):
        sys.exit(f"{model_dir} is no model: give the directory model/ of a run that has succeeded")
    for sentence, (label, probability) in zip(sentences, classify(model_dir, sentences), strict=True):
        print(f"{label:<10} {probability:.3f}  {sentence}")


if __name__ == "__main__":
    main()
