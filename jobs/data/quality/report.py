"""What `fleetune data check` finds out, as one value. Light to import: shown by whoever has its JSON."""

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
    line: int  # 1-based; 0 where the whole file is meant
    text: str = ""  # how it begins, or what is wrong with it
    other_file: str | None = None  # of the record that it is compared with
    other_line: int | None = None


class Finding(Frozen):
    """One kind of trouble. An error is what `prepare` would set aside or stop at; a warning is probably not meant."""

    kind: str  # stable, for programs: exact-duplicates, turn-order ...
    severity: Severity
    title: str  # for people: `exact duplicates within train`
    count: int = Field(ge=0)  # records
    of: int = Field(ge=0)  # records that were looked at
    advice: str  # what to do about it
    examples: tuple[Example, ...] = ()


class Histogram(Frozen):
    """counts[i] values lie in [edges[i], edges[i + 1])."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


class SourceReport(Frozen):
    """One source."""

    where: str  # data.train[0]
    path: str
    format: str
    files: int
    bytes: int
    records: int
    bad: int  # records that cannot be used
    samples: int
    tokens: int  # after cutting
    targets: int
    cut_samples: int  # longer than seq_len
    cut_tokens: int  # that seq_len had no room for
    weight: float | None = None


class LabelCount(Frozen):
    """How often a class occurs."""

    label: str
    train: int
    eval: int


class LongSample(Frozen):
    """One of the longest samples."""

    file: str
    line: int
    tokens: int  # before cutting
    text: str


class Packing(Frozen):
    """What rows to expect in training."""

    packed: bool
    rows: int
    seq_len: int
    density: float  # tokens / (rows * seq_len); where not packed, of rows that are padded to the longest of their batch


class DataReport(Frozen):
    """All that a check has found."""

    version: int = REPORT_VERSION
    name: str  # of the spec
    created_at: datetime.datetime
    fingerprint: str  # of the data
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
    lengths: dict[str, Histogram]  # tokens of samples before cutting, by role: train, eval
    length_quantiles: dict[str, dict[str, float]]  # role -> {"mean", "p50", "p90", "p99", "max"}
    labels: tuple[LabelCount, ...] = ()
    longest: tuple[LongSample, ...] = ()
    packing: Packing | None
    near_duplicates_looked_at: int  # samples that were compared; fewer than all where there are many
    findings: tuple[Finding, ...]
    bad_rows_file: str | None
