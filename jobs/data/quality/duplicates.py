"""Which samples say the same, or nearly the same. Pure; numpy and datasketch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from datasketch import LeanMinHash, MinHashLSH

from jobs.data.order.permutation import mix

Numbers = npt.NDArray[np.int64]

SIMILAR = 0.8  # share of sets of words that two samples have in common (Jaccard), from which on they are near
# 16 bands of 8 find 95 of 100 pairs at SIMILAR, and all but one of 10,000 at 0.9.
_BANDS, _ROWS = 16, 8
_MOST_CANDIDATES = 50  # that share a band with a sample; templates share theirs with thousands
MOST_COMPARED = 100_000


@dataclass(frozen=True)
class Pairs:
    """Samples that repeat an earlier one; equally long arrays of numbers of samples."""

    later: Numbers
    earlier: Numbers

    def __len__(self) -> int:
        return len(self.later)


def exact_duplicates(content: npt.NDArray[np.uint64]) -> Pairs:
    """Every sample whose content an earlier one has, with the first that has it. content: (samples,)."""
    _, firsts, which = np.unique(content, return_index=True, return_inverse=True)
    earlier = firsts[which].astype(np.int64)
    later = np.flatnonzero(earlier != np.arange(len(content))).astype(np.int64)
    return Pairs(later, earlier[later])


def chosen_to_compare(content: npt.NDArray[np.uint64], has_signature: npt.NDArray[np.bool_]) -> Numbers:
    """The samples among which near-duplicates are looked for: one of each content, and the same ones every time."""
    _, firsts = np.unique(content, return_index=True)
    firsts = np.sort(firsts[has_signature[firsts]])
    if len(firsts) > MOST_COMPARED:
        # Not by the hash itself, whose lowest values are those of the samples that are held out.
        drawn = mix(content[firsts])
        firsts = np.sort(firsts[np.argsort(drawn, kind="stable")[:MOST_COMPARED]])
    return firsts.astype(np.int64)


def near_duplicates(samples: Numbers, signatures: Sequence[npt.NDArray[np.uint32]]) -> Pairs:
    """Every sample that is nearly an earlier one, with the one that it is most like.

    One that is near an earlier one stands for nothing further: a thousand copies are compared with the first of them,
    and not with each other, or templates would take quadratic time.

    Args:
        samples: (n,) numbers of samples, ascending.
        signatures: MinHash of each, as `jobs.data.quality.facts` has it.
    """
    if not len(samples):
        return Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64))
    index = MinHashLSH(num_perm=len(signatures[0]), params=(_BANDS, _ROWS))
    later, earlier = [], []
    with index.insertion_session() as session:
        for place, values in enumerate(signatures):
            hashed = LeanMinHash(seed=1, hashvalues=values, scheme="affine32")
            near = sorted(index.query(hashed))[:_MOST_CANDIDATES]
            likeness = [(float(np.mean(signatures[other] == values)), -other) for other in near]
            if likeness and (best := max(likeness))[0] >= SIMILAR:
                later.append(samples[place])
                earlier.append(samples[-best[1]])
                continue
            session.insert(place, hashed, check_duplication=False)
    return Pairs(np.array(later, np.int64), np.array(earlier, np.int64))
