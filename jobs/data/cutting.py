"""How much `data.seq_len` truncates samples, and which `seq_len` would keep nearly all tokens. Light and pure."""

from __future__ import annotations

import math
from collections.abc import Mapping

from jobs.frozen import Frozen

_WORTH_SAYING = 0.01  # share of truncated tokens from which on a warning is given


class Cut(Frozen):
    """Counts of samples and tokens that `seq_len` truncates."""

    samples: int
    cut_samples: int
    tokens: int  # before truncation
    cut_tokens: int
    keeps_95: int  # the smallest seq_len that keeps 95 % of the tokens
    keeps_99: int


def cut_of(lengths: Mapping[int, int], seq_len: int) -> Cut:
    """Count what `seq_len` truncates.

    Args:
        lengths: number of samples by their length in tokens before truncation.
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
    """Return the smallest length to which samples can be truncated so that this share of all tokens is kept."""
    wanted = share * sum(length * count for length, count in lengths.items())
    kept, longer, last = 0, sum(lengths.values()), 0
    for length in sorted(lengths):
        more = (length - last) * longer  # tokens that all samples of at least this length gain
        if kept + more >= wanted:
            return last + math.ceil((wanted - kept) / longer)
        kept, longer, last = kept + more, longer - lengths[length], length
    return last


def format_cut(where: str, cut: Cut | None, seq_len: int, most: int | None = None) -> str | None:
    """Describe a source that loses at least 1 % of its tokens; None for any other source.

    Args:
        where: name of the source in the spec, such as data.train.
        most: number of tokens that the model has positions for; None: nothing limits them.
    """
    if cut is None or cut.cut_tokens < _WORTH_SAYING * cut.tokens or not cut.cut_tokens:
        return None
    samples, tokens = cut.cut_samples / cut.samples, cut.cut_tokens / cut.tokens
    keeping = [
        (length, share) for length, share in ((cut.keeps_95, "95 %"), (cut.keeps_99, "99 %")) if length > seq_len
    ]
    within = [(length, share) for length, share in keeping if most is None or length <= most]
    better = ", ".join(f"{length} would keep {share}" for length, share in within)
    if most is not None and len(within) < len(keeping):
        room = f"{most}, as many as the model has positions, would keep more"
        better = ", ".join(filter(None, (better, room))) if most > seq_len else ""
    what = (
        f"data.seq_len ({seq_len}) cuts {samples:.0%} of the samples of {where}, which loses {tokens:.0%} of the tokens"
    )
    return f"{what}. data.seq_len: {better}" if better else what
