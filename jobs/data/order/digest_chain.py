"""A digest chain over the sample ids that a run has trained on: a 64-bit word that depends on ids and order.

Each row has a digest of its sample ids, each step has a sum over its rows and their places in the global batch, and the
chain combines the digests of all steps. A run that lost, repeated or swapped a row gets a different chain.
`chain_of` computes the expected chain from the row order alone, at millions of rows a second. The chain protects
against mistakes, not against forgery: nothing in it is secret.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt

from jobs.data.order.permutation import Words, mix
from jobs.data.order.row_order import GROUP_STEPS, StepPlan

EMPTY_CHAIN = 0x6A09E667F3BCC908  # before the first step; not 0, so that empty first steps change the chain
_FACTOR = 6364136223846793005  # Knuth's multiplier for MMIX; odd, so that no digest is ever multiplied to 0
_MODULUS = 2**64
_PIECE_ROWS = 2**18  # rows of the order that are computed at once
_LISTS_AT_ONCE = 2**12  # lists that are hashed at once; a packed row may have hundreds of ids


def row_digests(sample_ids: Any) -> Words:
    """Compute a digest of each row's sample ids, which depends on their order and number.

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
    ids = lists.values.slice(offsets[0], offsets[-1] - offsets[0])  # only those of this slice
    if lists.null_count or ids.null_count or str(ids.type) != "int64":
        nulls = lists.null_count + ids.null_count
        raise ValueError(f"sample ids must be lists of int64 without nulls, these are {lists.type} with {nulls} nulls")
    offsets -= offsets[0]
    counts = np.diff(offsets)
    places = np.arange(len(ids)) - np.repeat(offsets[:-1], counts)
    words = mix(ids.to_numpy().view(np.uint64) ^ mix(places.view(np.uint64)))
    # Differences of cumulative sums, because np.add.reduceat cannot sum an empty list.
    sums = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(words, dtype=np.uint64)])
    return mix((sums[offsets[1:]] - sums[offsets[:-1]]) ^ mix(counts.view(np.uint64)))


def step_digest(digests_of_rows: Words, places: npt.NDArray[np.int64]) -> int:
    """Compute the digest of a step, or of a part of it.

    It is a sum modulo 2**64 over the rows. So the digests of disjoint parts of a step, such as those of several workers
    or micro-batches, add up modulo 2**64 to the digest of the whole step, in any order.

    Args:
        digests_of_rows: (n,) uint64, see `row_digests`; may be empty.
        places: (n,) int64, place of each row in the global batch of the step, from 0.

    Returns:
        A number in range(2**64); 0 for no rows.
    """
    salts = mix(np.asarray(places, dtype=np.int64).view(np.uint64))
    return int(mix(digests_of_rows ^ salts).sum(dtype=np.uint64))


def extended(chain: int, digest: int) -> int:
    """Return the chain after one more step with this digest (modulo 2**64); in range(2**64)."""
    return (chain * _FACTOR + digest) % _MODULUS


def chain_of(plan: StepPlan, digests: Words, steps: int) -> int:
    """Compute the chain after the first `steps` steps of a run that kept to its plan, in bounded memory.

    It equals extending `EMPTY_CHAIN` by the `step_digest` of each step; it is evaluated as a polynomial in the factor.

    Args:
        digests: (all_rows,) uint64, digests of all rows of the data; see `row_digests`.

    Raises:
        ValueError: the plan has fewer steps, or the number of digests is not that of the rows.
    """
    if not 0 <= steps <= plan.total_steps:
        raise ValueError(f"there is no chain of {steps} steps in a run of {plan.total_steps}")
    if len(digests) != plan.order.all_rows:
        raise ValueError(f"{len(digests)} digests were given for {plan.order.all_rows} rows")
    per_step = plan.rows_per_step
    full = min(steps, plan.total_rows // per_step)  # steps with all rows; the last step of a run may have fewer
    # With fewer steps, the same groups would be computed repeatedly.
    at_once = max(GROUP_STEPS, _PIECE_ROWS // per_step)
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
    """Return the factor to the powers count - 1, ..., 1, 0, modulo 2**64; (count,) uint64."""
    factors = np.full(count, _FACTOR, dtype=np.uint64)
    factors[:1] = 1
    return np.multiply.accumulate(factors)[::-1]


def to_hex(chain: int) -> str:
    """Format a chain as 16 hex digits.

    Raises:
        ValueError: it is not a 64-bit word.
    """
    if not 0 <= chain < _MODULUS:
        raise ValueError(f"a chain is a number of 64 bits, not {chain}")
    return f"{chain:016x}"


def from_hex(text: str) -> int:
    """Parse the text that `to_hex` wrote.

    Raises:
        ValueError: it is any other text.
    """
    if not re.fullmatch("[0-9a-f]{16}", text):
        raise ValueError(f"a chain is written with 16 hex digits, not {text!r}")
    return int(text, 16)
