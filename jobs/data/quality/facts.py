"""Computes the facts about each sample that a check uses, in the worker that tokenises its chunk. Pure."""

from __future__ import annotations

import functools
import itertools
import re
import unicodedata
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from datasketch import MinHash

from cluster.text import first_line
from jobs.data.prepared import IGNORE_INDEX
from jobs.data.sources.bad_records import BadRecord, Reason
from jobs.data.sources.chunks import Chunk, Work, tokenised
from jobs.data.sources.content import content_hash
from jobs.data.sources.dialogues import ChatSample
from jobs.data.sources.formats import ClassSample, Sample, TextSample, texts_of
from jobs.data.sources.tokenize import TokenRow

NUM_PERM = 128  # hash functions of a signature: the estimated similarity is off by at most 0.09, usually by 0.03
SHINGLE_WORDS = 3
UNKNOWN_SHARE = 0.1  # a sample is reported if at least this share of its tokens is the unknown token
TEXT_SHOWN = 160  # characters of a sample that the report shows

FACTS_SCHEMA = pa.schema(
    [
        ("file", pa.int32()),
        ("line", pa.int64()),
        ("position", pa.int64()),  # bytes of the file that were read by the end of the chunk
        ("records", pa.int64()),  # records of the chunk, in its first row; null in other rows
        ("reason", pa.string()),  # why the record cannot be used; null for a sample
        ("kind", pa.string()),  # of the reason, see `Reason`; null for a sample
        ("fatal", pa.bool_()),
        ("text", pa.string()),  # start of the sample
        ("content", pa.uint64()),
        ("tokens", pa.int64()),  # before truncation
        ("lengths", pa.list_(pa.int32())),  # tokens of its rows, after truncation
        ("targets", pa.int64()),
        ("cut", pa.int64()),  # tokens beyond seq_len
        ("label", pa.int32()),  # class, or -1
        ("chars", pa.int64()),  # characters of its longest text
        ("open_end", pa.bool_()),  # whether that text ends in the middle of a sentence
        ("marks", pa.list_(pa.string())),  # kinds of problems that the sample itself shows
        ("signature", pa.list_(pa.uint32())),  # MinHash of its words; empty if it has too few
    ]
)
# UTF-8 decoded as Latin-1 or Windows-1252 and encoded again: a lead byte, then a continuation byte.
_MOJIBAKE = re.compile(
    "[\u00c2\u00c3\u00e2][\u0080-\u00bf\u20ac\u201a-\u201e\u2020-\u2022\u02c6\u2030\u0152\u0153\u2122]"
)
_SENTENCE_END = tuple(".!?\"')]}>:;*`|\u201d\u2019\u2026\u3002\uff01\uff1f\u300d")
_WORD = re.compile(r"\w+")
_KNOWN_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})


def facts_of(chunk: Chunk, work: Work) -> Any:
    """Compute the facts of one chunk, one row per sample or bad record, with FACTS_SCHEMA. Runs in workers."""
    unknown = _unknown_token(work.tokenizer.load())
    rows: list[dict[str, Any]] = [
        {
            "file": chunk.file,
            "line": line,
            "position": chunk.position,
            **_facts(sample, result, unknown, line in chunk.joined),
        }
        for line, sample, result in itertools.chain.from_iterable(tokenised(chunk, work))
    ]
    if not rows:  # an empty row, so that the chunk counts as read
        rows.append({"file": chunk.file, "line": -1, "position": chunk.position})
    rows[0]["records"] = len(chunk.rows)
    return pa.Table.from_pylist(rows, schema=FACTS_SCHEMA)


def _unknown_token(tokenizer: Any) -> int | None:
    """Return the tokenizer's unknown token. Return None if it has none, or if the token also marks the start or end.

    GPT-2 uses one token for all three.
    """
    unknown: int | None = tokenizer.unk_token_id
    return None if unknown in (tokenizer.bos_token_id, tokenizer.eos_token_id) else unknown


def _facts(sample: Sample | BadRecord, result: Any, unknown: int | None, joined: bool) -> dict[str, Any]:
    if isinstance(sample, BadRecord):
        return {**_reason(sample.why), "fatal": sample.fatal, "text": ""}
    texts = texts_of(sample)
    shown = " | ".join(filter(None, texts))[:TEXT_SHOWN]
    if isinstance(result, Reason):
        return {**_reason(result), "fatal": False, "text": shown, "marks": []}
    longest = max(texts, key=len)
    lengths = [len(row["input_ids"]) for row in result]
    cut = sum(row["cut"] for row in result)
    classify = isinstance(sample, ClassSample)
    return {
        "fatal": False,
        "text": shown,
        "content": content_hash(sample),
        "tokens": sum(lengths) + cut,
        "lengths": lengths,
        "targets": 1 if classify else sum(int(np.count_nonzero(row["labels"] != IGNORE_INDEX)) for row in result),
        "cut": cut,
        "label": sample.label if isinstance(sample, ClassSample) else -1,
        "chars": len(longest),
        "open_end": bool(longest) and not longest.rstrip().endswith(_SENTENCE_END),
        "marks": [
            *_marks(sample, texts),
            *_divided(sample, result),
            *(["joined-records"] if joined else []),
            *_unknown(result, unknown),
        ],
        "signature": signature(" ".join(texts)),
    }


def _divided(sample: Sample, rows: list[TokenRow]) -> list[str]:
    return ["divided"] if isinstance(sample, ChatSample) and len(rows) > 1 else []


def _unknown(rows: list[TokenRow], token: int | None) -> list[str]:
    if token is None:
        return []
    count = sum(int(np.count_nonzero(row["input_ids"] == token)) for row in rows)
    return ["unknown-tokens"] if count >= UNKNOWN_SHARE * sum(len(row["input_ids"]) for row in rows) else []


def _reason(reason: Reason) -> dict[str, Any]:
    return {"reason": reason.text, "kind": reason.kind or first_line(reason.text)}


def _marks(sample: Sample, texts: tuple[str, ...]) -> list[str]:
    """Return the kinds of problems that a sample shows, by their names in `findings`."""
    controls = {char for text in texts if not text.isprintable() for char in text if _is_control(char)}
    shown = {
        "mojibake": any(map(_MOJIBAKE.search, texts)),
        "replacement-character": any("\ufffd" in text for text in texts),
        "windows-1252": any("\x80" <= char <= "\x9f" for char in controls),
        "control-characters": any(not "\x80" <= char <= "\x9f" for char in controls),
        "nearly-empty": isinstance(sample, TextSample | ClassSample) and len(sample.text.strip()) < 3,
        **(_chat_marks(sample) if isinstance(sample, ChatSample) else {}),
    }
    return [mark for mark, is_shown in shown.items() if is_shown]


def _is_control(char: str) -> bool:
    return unicodedata.category(char) == "Cc" and char not in "\n\r\t\f"


def _chat_marks(sample: ChatSample) -> dict[str, bool]:
    roles = [role for role, _ in sample.messages]
    empty = {role for role, text in zip(roles, sample.texts, strict=True) if not text.strip()}
    talk = [role for role in roles if role in ("user", "assistant")]
    has_tools = "tool" in roles or "function" in roles
    return {
        "unknown-role": not _KNOWN_ROLES.issuperset(roles),
        "system-not-first": any(role in ("system", "developer") for role in roles[1:]),
        "turns-out-of-order": not has_tools and any(one == two for one, two in itertools.pairwise(talk)),
        "assistant-first": talk[:1] == ["assistant"],
        "ends-without-answer": roles[-1] != "assistant",
        "empty-answer": "assistant" in empty,
        "empty-question": "user" in empty,
    }


def signature(text: str) -> list[int]:
    """Compute the MinHash of all sequences of SHINGLE_WORDS words; empty for texts shorter than two sequences."""
    words = _WORD.findall(text.lower())
    if len(words) < 2 * SHINGLE_WORDS:
        return []
    found = _empty_signature().copy()
    found.update_batch(_shingles(words).tolist())
    return found.hashvalues.astype(np.uint32).tolist()  # type: ignore[no-any-return]


@functools.cache
def _empty_signature() -> MinHash:
    return MinHash(num_perm=NUM_PERM, hashfunc=int, scheme="affine32")


def _shingles(words: list[str]) -> npt.NDArray[np.uint32]:
    """Return the distinct hashes of all sequences of consecutive words."""
    hashes = np.fromiter((zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in words), np.uint64, len(words))
    mixed = np.zeros(len(words) - SHINGLE_WORDS + 1, np.uint64)
    for place in range(SHINGLE_WORDS):
        mixed = (mixed ^ hashes[place : place + len(mixed)]) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return np.unique((mixed >> np.uint64(16)).astype(np.uint32))
