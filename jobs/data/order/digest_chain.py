"""A hash chain over the sample ids that a run has trained on: one 64-bit word that says which, in which order.

Each row has a digest of its sample ids, each step a sum over its rows and their places in the global batch, and each
step's digest is hung onto the chain. So a run that lost, repeated or swapped a row has another chain than its order
says, and `chain_of` works out from the order alone what it should be, at millions of rows a second. It is a check
against mistakes, not against somebody who wants to forge a chain: nothing in it is secret.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt

from jobs.data.order.permutation import Words, mix
from jobs.data.order.row_order import GROUP_STEPS, StepPlan

EMPTY_CHAIN = 0x6A09E667F3BCC908  # before the first step; any word but 0, which would not show leading empty steps
_FACTOR = 6364136223846793005  # Knuth's for MMIX; odd, so that no step's digest is ever multiplied away
_MODULUS = 2**64
_PIECE_ROWS = 2**18  # of the order that are worked out at once
_LISTS_AT_ONCE = 2**12  # a packed row may have hundreds of ids


def row_digests(sample_ids: Any) -> Words:
    """A digest of each row's sample ids; their order and their number matter.

    Args:
        sample_ids: pyarrow ListArray (or LargeListArray) of int64, or a ChunkedArray of them; may be a slice.

    Returns:
        (rows,) uint64.

    Raises:
        ValueError: a list or an id is null, or the ids are not int64.
    """
    chunks = getattr(sample_ids, "chunks", [sample_ids])
    pieces = [
        _digests_of_lists(chunk.slice(start, _LISTS_AT_ONCE))
        for chunk in chunks
        for start in range(0, len(chunk), _LISTS_AT_ONCE)
    ]
    return np.concatenate([np.empty(0, dtype=np.uint64), *pieces])


def _digests_of_lists(lists: Any) -> Words:
    offsets = lists.offsets.to_numpy().astype(np.int64)
    ids = lists.values.slice(offsets[0], offsets[-1] - offsets[0])  # those of the slice only
    if lists.null_count or ids.null_count or str(ids.type) != "int64":
        nulls = lists.null_count + ids.null_count
        raise ValueError(f"sample ids must be lists of int64 without nulls, these are {lists.type} with {nulls} nulls")
    offsets -= offsets[0]
    counts = np.diff(offsets)
    places = np.arange(len(ids)) - np.repeat(offsets[:-1], counts)
    words = mix(ids.to_numpy().view(np.uint64) ^ mix(places.view(np.uint64)))
    # Differences of running sums, as np.add.reduceat cannot sum an empty list.
    sums = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(words, dtype=np.uint64)])
    return mix((sums[offsets[1:]] - sums[offsets[:-1]]) ^ mix(counts.view(np.uint64)))


def step_digest(digests_of_rows: Words, places: npt.NDArray[np.int64]) -> int:
    """Digest of a step, or of a part of it.

    A sum modulo 2**64 over the rows: the digests of disjoint parts of a step, such as those of several workers or of
    several micro-batches, ADD UP modulo 2**64 to the digest of the whole, in whatever order.

    Args:
        digests_of_rows: (n,) uint64, see `row_digests`; may be empty.
        places: (n,) int64, where each row stands in the global batch of the step, from 0.

    Returns:
        A number in range(2**64); 0 for no rows.
    """
    salts = mix(np.asarray(places, dtype=np.int64).view(np.uint64))
    return int(mix(digests_of_rows ^ salts).sum(dtype=np.uint64))


def extended(chain: int, digest: int) -> int:
    """The chain after one more step, whose digest (modulo 2**64) is given; in range(2**64)."""
    return (chain * _FACTOR + digest) % _MODULUS


def chain_of(plan: StepPlan, digests: Words, steps: int) -> int:
    """The chain after the first `steps` steps of a run that kept to its plan, in bounded memory.

    What extending `EMPTY_CHAIN` by the `step_digest` of one step after another gives, as a polynomial in the factor.

    Args:
        digests: (all_rows,) uint64, of all rows of the data; see `row_digests`.

    Raises:
        ValueError: there are fewer steps in the plan, or other rows than digests.
    """
    if not 0 <= steps <= plan.total_steps:
        raise ValueError(f"there is no chain of {steps} steps in a run of {plan.total_steps}")
    if len(digests) != plan.order.all_rows:
        raise ValueError(f"{len(digests)} digests were given for {plan.order.all_rows} rows")
    per_step = plan.rows_per_step
    full = min(steps, plan.total_rows // per_step)  # the others are the short last step, if it is asked for
    at_once = max(GROUP_STEPS, _PIECE_ROWS // per_step)  # fewer would work the same groups out again and again
    powers = _powers(min(at_once, full))
    salts = mix(np.arange(per_step, dtype=np.uint64))
    chain = EMPTY_CHAIN
    for start in range(0, full, at_once):
        stop = min(start + at_once, full)
        rows = plan.rows_of_steps(start, stop).reshape(-1, per_step)
        of_steps = mix(digests[rows] ^ salts).sum(axis=1, dtype=np.uint64)
        tail = int((of_steps * powers[len(powers) - len(rows) :]).sum(dtype=np.uint64))
        chain = (chain * pow(_FACTOR, len(rows), _MODULUS) + tail) % _MODULUS
    if full < steps:
        rows = plan.rows_of_step(full)
        chain = extended(chain, step_digest(digests[rows], np.arange(len(rows))))
    return chain


def _powers(count: int) -> Words:
    """The factor to the power of count - 1, ..., 1, 0, modulo 2**64; (count,) uint64."""
    factors = np.full(count, _FACTOR, dtype=np.uint64)
    factors[:1] = 1
    return np.multiply.accumulate(factors)[::-1]


def to_hex(chain: int) -> str:
    """16 hex digits.

    Raises:
        ValueError: it is not a word of 64 bits.
    """
    if not 0 <= chain < _MODULUS:
        raise ValueError(f"a chain is a number of 64 bits, not {chain}")
    return f"{chain:016x}"


def from_hex(text: str) -> int:
    """What `to_hex` wrote.

    Raises:
        ValueError: it is something else.
    """
    if not re.fullmatch("[0-9a-f]{16}", text):
        raise ValueError(f"a chain is written with 16 hex digits, not {text!r}")
    return int(text, 16)
