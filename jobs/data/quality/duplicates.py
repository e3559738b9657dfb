"""Finds samples with equal or nearly equal content. Pure; numpy and datasketch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from datasketch import LeanMinHash, MinHashLSH

from jobs.data.order.permutation import mix

Numbers = npt.NDArray[np.int64]

SIMILAR = 0.8  # Jaccard similarity of sets of words from which on two samples count as near-duplicates
# 16 bands of 8 rows find 95 % of the pairs at SIMILAR, and all but one in 10,000 at 0.9.
_BANDS, _ROWS = 16, 8
_MOST_CANDIDATES = 50  # samples that are compared with one; samples made from a template may have thousands
MOST_COMPARED = 100_000


@dataclass(frozen=True)
class Pairs:
    """Samples that repeat an earlier one, as two arrays of sample numbers of equal length."""

    later: Numbers
    earlier: Numbers

    def __len__(self) -> int:
        return len(self.later)

    def where(self, wanted: npt.NDArray[np.bool_]) -> Pairs:
        return Pairs(self.later[wanted], self.earlier[wanted])


def exact_duplicates(content: npt.NDArray[np.uint64]) -> Pairs:
    """Find every sample whose content occurs earlier, with its first occurrence. content: (samples,)."""
    _, firsts, which = np.unique(content, return_index=True, return_inverse=True)
    earlier = firsts[which].astype(np.int64)
    later = np.flatnonzero(earlier != np.arange(len(content))).astype(np.int64)
    return Pairs(later, earlier[later])


def chosen_to_compare(content: npt.NDArray[np.uint64], has_signature: npt.NDArray[np.bool_]) -> Numbers:
    """Choose samples for the comparison of near-duplicates: one of each content, always the same ones."""
    _, firsts = np.unique(content, return_index=True)
    firsts = np.sort(firsts[has_signature[firsts]])
    if len(firsts) > MOST_COMPARED:
        # Mixed first, because the lowest hashes are those of held-out samples.
        drawn = mix(content[firsts])
        firsts = np.sort(firsts[np.argsort(drawn, kind="stable")[:MOST_COMPARED]])
    return firsts.astype(np.int64)


def near_duplicates(samples: Numbers, signatures: Sequence[npt.NDArray[np.uint32]]) -> Pairs:
    """Find every sample that is nearly equal to an earlier one, with the most similar such sample.

    A near-duplicate is not compared with later samples: a thousand copies are compared only with the first, because
    comparing them with each other would take quadratic time.

    Args:
        samples: (n,) numbers of samples, ascending.
        signatures: MinHash of each sample, from `jobs.data.quality.facts`.
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
