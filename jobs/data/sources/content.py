"""Splits samples into train and eval by their content. Light to import."""

from __future__ import annotations

import hashlib
import json

from cluster.text import many
from jobs.data.sources.dialogues import ChatSample
from jobs.data.sources.formats import ClassSample, Sample, TextSample, texts_of


def content_hash(sample: Sample) -> int:
    """Hash a sample to 64 bits, without its label, so that a text is never on both sides of a split."""
    return int.from_bytes(hashlib.blake2b(said(sample).encode(), digest_size=8).digest(), "little")


def held_out_below(fraction: float) -> int:
    """Return the bound of the hashes: samples with a lower hash are held out."""
    return int(fraction * 2**64)


def empty_split(fraction: float, samples: int, path: str, name: str) -> str:
    """Return the message that `data.eval_fraction` leaves no sample for a split. `name`: train or eval."""
    return (
        f"data.eval_fraction ({fraction}) of {many(samples, 'sample')} of {path} leaves none for {name} "
        "(equal samples stay together): choose another fraction, or give data.eval"
    )


def said(sample: Sample) -> str:
    """Return the content of a sample as one text. Samples with different contents have different texts."""
    if isinstance(sample, TextSample | ClassSample):
        return sample.text
    texts = _said_in(sample) if isinstance(sample, ChatSample) else texts_of(sample)
    return "".join(f"{len(text)}:{text}" for text in texts)


def _said_in(sample: ChatSample) -> list[str]:
    more = (sorted(sample.extras.items()), sample.tools, sample.unlearned)
    texts = [text for message in sample.messages for text in message]
    return [*texts, json.dumps(more, sort_keys=True, default=str)] if any(more) else texts
