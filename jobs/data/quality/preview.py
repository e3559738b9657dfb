"""Shows rows as the model will see them, for people who want to look before they train."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from cluster.errors import DataError
from cluster.text import many
from jobs.data.preparation.fingerprint import SourceJob, check_formats, fingerprint_of_jobs, source_jobs
from jobs.data.preparation.packing import one_a_row, pack
from jobs.data.prepared import IGNORE_INDEX, SOURCE_ID_BITS, Prepared
from jobs.data.sources.bad_records import BadRecord, Reason
from jobs.data.sources.chunks import held_out, read_chunks, tokenised
from jobs.data.sources.content import content_hash
from jobs.data.sources.formats import first_of
from jobs.model_files.tokenizer import read_tokenizer
from jobs.run.paths import prepared_root
from jobs.spec.finetune import Spec

ENOUGH = 2048  # samples of each source that are read if nothing is prepared


@dataclass(frozen=True)
class ShownSample:
    """One sample of a row."""

    source: int  # number of its source
    number: int  # number of the sample in the source, or its line if nothing is prepared
    tokens: tuple[int, ...]
    pieces: tuple[str, ...]  # the text of each token; joined, they are the sample's text
    targets: tuple[bool, ...]  # whether each token is a target; all False for a class
    label: str | None  # the class


@dataclass(frozen=True)
class ShownRow:
    """One row, which is one sequence of a batch."""

    number: int
    samples: tuple[ShownSample, ...]
    prepared: bool  # whether it is a row of prepared data; if not, it was packed for the preview


def shown_rows(
    spec: Spec,
    model_dir: str,
    count: int,
    split: Literal["train", "eval"],
    start: int,
    warn: Callable[[str], None] = lambda text: None,
) -> list[ShownRow]:
    """Return rows from number `start` on, of prepared data or else of the first samples of each source.

    Args:
        warn: takes what is to be said of records that cannot be used, and are not shown.

    Raises:
        DataError: there are no such rows, or none of the first records can be used.
    """
    files = read_tokenizer(model_dir, spec.model.chat_template)
    jobs = source_jobs(spec, files)
    check_formats([job for of_role in jobs.values() for job in of_role], files, model_dir)
    if split == "eval" and not spec.data.has_eval:
        raise DataError("there are no held-out samples: give data.eval or data.eval_fraction")
    digest, _ = fingerprint_of_jobs(jobs)
    prepared = Prepared.find(prepared_root(spec.storage_path, digest))
    if prepared is not None:
        rows = prepared.split(split)
        table = rows.read_rows(np.arange(min(start, len(rows)), min(start + count, len(rows)))).to_pylist()
    else:
        table = _first_rows(spec, jobs, split, warn)[start : start + count]
    if not table:
        few = "" if prepared else " among those that are looked at before the data is prepared (fleetune data prepare)"
        raise DataError(f"there is no row {start} in {split}{few}: give a smaller --from")
    tokenizer, is_prepared = files.load(), prepared is not None
    return [
        ShownRow(number, tuple(_samples(row, tokenizer, spec)), is_prepared) for number, row in enumerate(table, start)
    ]


def _first_rows(
    spec: Spec, jobs: dict[str, list[SourceJob]], split: str, warn: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Pack the first samples of each source, in their order."""
    found, bad = list[dict[str, Any]](), list[BadRecord]()
    of_split = jobs.get(split) or jobs["train"]
    for number, job in enumerate(of_split):
        some = _first_samples(job, split, bad)
        found += [{**sample, "sample_ids": [sample["number"] + (number << SOURCE_ID_BITS)]} for sample in some]
    if not found:
        reasons = f": none can be used\n{first_of(bad, 3)}" if bad else ""
        raise DataError(f"data.{split} has no sample to show{reasons}")
    if bad:
        are = "is" if len(bad) == 1 else "are"
        warn(f"{many(len(bad), 'record')} cannot be used, and {are} not shown:\n{first_of(bad, 3)}")
    lengths = [len(sample["input_ids"]) for sample in found]
    rows = pack(lengths, spec.data.seq_len) if spec.packed else one_a_row(len(found))
    return [_row([found[place] for place in places]) for places in np.split(rows.samples, rows.ends[:-1])]


def _first_samples(job: SourceJob, split: str, bad: list[BadRecord]) -> list[dict[str, Any]]:
    """Return rows of a source's first samples in the split. Records that cannot be used are added to `bad`."""
    found = list[dict[str, Any]]()
    for path, line, sample, result in _tokenised(job):
        if len(found) >= ENOUGH:
            break
        if isinstance(sample, BadRecord) or isinstance(result, Reason):
            bad.append(sample if isinstance(sample, BadRecord) else BadRecord.of(path, line, result))
            continue
        (held,) = held_out(np.array([content_hash(sample)], np.uint64), job.eval_fraction)
        if job.eval_fraction is None or held == (split == "eval"):
            found += [{"input_ids": row["input_ids"], "labels": row["labels"], "number": line} for row in result]
    return found


def _tokenised(job: SourceJob) -> Iterator[Any]:
    """Yield all samples of a source: file, line, sample, and its rows or why there are none."""
    for file, path in enumerate(job.work.files):
        for chunk in read_chunks(file, job.work):
            for some in tokenised(chunk, job.work):
                yield from ((path, *one) for one in some)


def _row(samples: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "input_ids": np.concatenate([sample["input_ids"] for sample in samples]).tolist(),
        "labels": np.concatenate([sample["labels"] for sample in samples]).tolist(),
        "lengths": [len(sample["input_ids"]) for sample in samples],
        "sample_ids": [sample["sample_ids"][0] for sample in samples],
    }


def _samples(row: dict[str, Any], tokenizer: Any, spec: Spec) -> Iterator[ShownSample]:
    causal = spec.model.task == "causal-lm"
    for end, length, number in zip(np.cumsum(row["lengths"]), row["lengths"], row["sample_ids"], strict=True):
        tokens = row["input_ids"][end - length : end]
        labels = row["labels"][end - length : end] if causal else [IGNORE_INDEX] * length
        source, inside = divmod(number, 1 << SOURCE_ID_BITS)
        yield ShownSample(
            source=source,
            number=inside,
            tokens=tuple(tokens),
            pieces=_pieces(tokens, tokenizer),
            targets=tuple(label != IGNORE_INDEX for label in labels),
            label=None if causal else _label(row["labels"][0], spec),
        )


def _label(number: int, spec: Spec) -> str:
    return spec.data.labels[number] if spec.data.labels else str(number)


def _pieces(tokens: list[int], tokenizer: Any) -> tuple[str, ...]:
    """Return the text that each token adds; joined, the pieces are the whole text.

    A character made of several tokens appears with the last of them.
    """

    def decoded(some: list[int]) -> str:
        return str(tokenizer.decode(some, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    pieces, start, said = [], 0, ""
    for end in range(1, len(tokens) + 1):
        text = decoded(tokens[start:end])
        if text.endswith("\ufffd") and end - start < 8 and end < len(tokens):
            pieces.append("")
            continue
        pieces.append(text.removeprefix(said))
        # The next token is decoded after this one, because some tokenizers drop a space at the very start.
        start, said = end - 1, decoded(tokens[end - 1 : end])
    return tuple(pieces)
