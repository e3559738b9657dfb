"""The report of `fleetune data check` as one value. Light to import, for programs that show its JSON."""

from __future__ import annotations

import datetime
from typing import Literal

from pydantic import Field

from jobs.frozen import Frozen

Severity = Literal["error", "warning", "note"]
REPORT_VERSION = 1
NEARLY_EQUAL = frozenset({"near-duplicates", "near-duplicates-across"})  # kinds of findings about two records


class Example(Frozen):
    """One record that shows a finding."""

    file: str
    line: int  # 1-based; 0 if the whole file is meant
    text: str = ""  # start of the record, or what is wrong with it
    other_file: str | None = None  # file of the record that it is compared with
    other_line: int | None = None


class Finding(Frozen):
    """One kind of problem. `prepare` would set errors aside or stop at them; warnings are probably not meant."""

    kind: str  # stable name for programs: exact-duplicates, turns-out-of-order ...
    severity: Severity
    title: str  # for people: `exact duplicates within train`
    count: int = Field(ge=0)  # in `unit`
    of: int = Field(ge=0)  # how many were examined
    unit: str = "record"  # record or class
    advice: str  # what to do about it
    examples: tuple[Example, ...] = ()


class Histogram(Frozen):
    """A histogram: counts[i] values lie in [edges[i], edges[i + 1])."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


class SourceReport(Frozen):
    """Counts of one source."""

    where: str  # data.train[0]
    path: str
    format: str
    files: int
    bytes: int
    records: int
    bad: int  # records that cannot be used
    samples: int
    tokens: int  # after truncation
    targets: int
    cut_samples: int  # longer than seq_len
    cut_tokens: int  # tokens beyond seq_len
    weight: float | None = None


class LabelCount(Frozen):
    """Number of samples of one class."""

    label: str
    train: int
    eval: int


class LongSample(Frozen):
    """One of the longest samples."""

    file: str
    line: int
    tokens: int  # before truncation
    text: str


class Packing(Frozen):
    """The rows to expect in training."""

    packed: bool
    rows: int
    seq_len: int
    density: float  # tokens / (rows * seq_len); if not packed, rows are padded to the longest of their batch


class DataReport(Frozen):
    """All results of a check."""

    version: int = REPORT_VERSION
    name: str  # name of the spec
    created_at: datetime.datetime
    fingerprint: str  # fingerprint of the data
    verdict: Literal["ok", "warnings", "errors"]
    blocked: str | None  # why `prepare` would stop, or None
    sources: tuple[SourceReport, ...]
    records: int
    samples: int
    train_samples: int
    eval_samples: int
    tokens: int
    targets: int
    seq_len: int
    max_bad_fraction: float
    lengths: dict[str, Histogram]  # tokens of samples before truncation, by role: train, eval
    length_quantiles: dict[str, dict[str, float]]  # role -> {"mean", "p50", "p90", "p99", "max"}
    labels: tuple[LabelCount, ...] = ()
    longest: tuple[LongSample, ...] = ()
    packing: Packing | None
    near_duplicates_looked_at: int  # samples that were compared; a part of all if there are many
    findings: tuple[Finding, ...]
    bad_rows_file: str | None
