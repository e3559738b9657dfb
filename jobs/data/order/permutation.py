"""Keyed permutations of range(n) that need no memory, and the mixing function behind them. Pure; numpy only.

A Feistel network with cycle walking (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002). The image of
any number can be computed directly, and so can its preimage.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

_WORD = 0xFFFFFFFFFFFFFFFF
_GAMMA, _FACTOR_1, _FACTOR_2 = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_SHIFT_1, _SHIFT_2, _SHIFT_3 = np.uint64(30), np.uint64(27), np.uint64(31)


def mix(words: Words) -> Words:
    """Apply the finaliser of SplitMix64 (Steele, Lea and Flood, 2014), a bijection of words; any shape except ()."""
    words = words + _GAMMA
    words ^= words >> _SHIFT_1
    words *= _FACTOR_1
    words ^= words >> _SHIFT_2
    words *= _FACTOR_2
    words ^= words >> _SHIFT_3
    return words


_ROUND_WORDS = mix(np.arange(4, dtype=np.uint64))  # one for each round of the Feistel network


@lru_cache(maxsize=64)
def key(seed: int, *parts: int) -> int:
    """Derive a 64-bit key from a seed and a few numbers."""
    return int(keys(seed, *(np.array([part & _WORD], dtype=np.uint64) for part in parts))[0])


def keys(seed: int, *parts: npt.NDArray[Any]) -> Words:
    """Compute the `key` of each set of parts, whose shapes are broadcast."""
    word = np.array([seed & _WORD], dtype=np.uint64)
    for part in parts:
        word = mix(word ^ mix(part.astype(np.uint64)))
    return word


def walk(values: Rows, size: int, with_keys: Words, forward: bool = True) -> Rows:
    """Apply a keyed permutation of range(size), or its inverse, with a separate key for each line.

    Args:
        values: (n, m) numbers in range(size), or (1, m) to use the same values in every line.
        size: size of the domain, at least 1.
        with_keys: (n, 1); each key gives another permutation.

    Returns:
        (n, m) int64 in range(size).
    """
    half_bits = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    round_keys = mix(with_keys ^ _ROUND_WORDS[:, None, None])
    x = _feistel(values.astype(np.uint64), half_bits, round_keys, forward)
    limit = np.uint64(size)
    lines, columns = np.nonzero(x >= limit)
    while len(lines):  # apply again until the value is inside: fewer than 4 times on average
        moved = _feistel(x[lines, columns], half_bits, round_keys[:, lines, 0], forward)
        x[lines, columns] = moved
        outside = moved >= limit
        lines, columns = lines[outside], columns[outside]
    return x.view(np.int64)


def _feistel(x: Words, half_bits: int, round_keys: Words, forward: bool) -> Words:
    half, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = x >> half, x & mask
    for round_key in round_keys if forward else round_keys[::-1]:
        if forward:
            left, right = right, left ^ (mix(right ^ round_key) & mask)
        else:
            left, right = right ^ (mix(left ^ round_key) & mask), left
    return (left << half) | right
