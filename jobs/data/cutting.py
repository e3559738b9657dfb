"""How much of the samples `data.seq_len` cuts off, and which `seq_len` would keep nearly all of it. Light and pure."""

from __future__ import annotations

import math
from collections.abc import Mapping

from jobs.frozen import Frozen

_WORTH_SAYING = 0.01  # share of the tokens


class Cut(Frozen):
    """What cutting costs."""

    samples: int
    cut_samples: int
    tokens: int  # before cutting
    cut_tokens: int
    keeps_95: int  # the smallest seq_len that keeps 95 % of the tokens
    keeps_99: int


def cut_of(lengths: Mapping[int, int], seq_len: int) -> Cut:
    """What `seq_len` cuts.

    Args:
        lengths: tokens of a sample before cutting -> number of such samples.
    """
    longer = {length: count for length, count in lengths.items() if length > seq_len}
    return Cut(
        samples=sum(lengths.values()),
        cut_samples=sum(longer.values()),
        tokens=sum(length * count for length, count in lengths.items()),
        cut_tokens=sum((length - seq_len) * count for length, count in longer.items()),
        keeps_95=_keeping(lengths, 0.95),
        keeps_99=_keeping(lengths, 0.99),
    )


def _keeping(lengths: Mapping[int, int], share: float) -> int:
    """The smallest length to which samples can be cut so that this share of all tokens is kept."""
    wanted = share * sum(length * count for length, count in lengths.items())
    kept, longer, last = 0, sum(lengths.values()), 0
    for length in sorted(lengths):
        more = (length - last) * longer  # every sample that is at least this long keeps so much more
        if kept + more >= wanted:
            return last + math.ceil((wanted - kept) / longer)
        kept, longer, last = kept + more, longer - lengths[length], length
    return last


def cut_words(where: str, cut: Cut | None, seq_len: int) -> str | None:
    """A sentence about a source that loses 1 % of its tokens or more; None for any other.

    Args:
        where: the source, as the spec names it: data.train.
    """
    if cut is None or cut.cut_tokens < _WORTH_SAYING * cut.tokens or not cut.cut_tokens:
        return None
    samples, tokens = cut.cut_samples / cut.samples, cut.cut_tokens / cut.tokens
    return (
        f"data.seq_len ({seq_len}) cuts {samples:.0%} of the samples of {where}, which loses {tokens:.0%} of the "
        "tokens. "
        f"data.seq_len: {cut.keeps_95} would keep 95 %, {cut.keeps_99} would keep 99 %"
    )
