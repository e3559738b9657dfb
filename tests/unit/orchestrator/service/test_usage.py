"""What tenants have held, by month."""

from __future__ import annotations

import datetime

import pytest

from cluster.capacity.gang import Gang
from orchestrator.queue.errors import QueueError
from orchestrator.queue.months import totals_of
from orchestrator.queue.records import Lease
from orchestrator.service.usage import month_begins_s, rows_of

HOUR_S = 3600.0


def at(*when: int) -> float:
    return datetime.datetime(*when, tzinfo=datetime.UTC).timestamp()  # type: ignore[arg-type, misc]


def lease(job: str, begin_s: float, end_s: float | None, tenant: str = "a", gpus: int = 1, workers: int = 2) -> Lease:
    return Lease(job, 1, tenant, Gang(workers, 4, gpus), (("n0", workers),), begin_s, end_s)


def rows(*leases: Lease, now_s: float = at(2027, 1, 1)) -> list[tuple[str, str, float, float, int]]:
    found = rows_of(totals_of(leases, now_s))
    return [(row.month, row.tenant, row.gpu_hours, row.cpu_hours, row.jobs) for row in found]


def test_gpu_hours_are_counted_by_month_and_tenant() -> None:
    begin = at(2026, 11, 3)
    leases = [lease("x", begin, begin + HOUR_S), lease("y", begin, begin + 2 * HOUR_S), lease("z", begin, begin, "b")]
    assert rows(*leases) == [("2026-11", "a", 6.0, 0.0, 2), ("2026-11", "b", 0.0, 0.0, 1)]


def test_gangs_without_gpus_count_in_cpu_hours() -> None:
    begin = at(2026, 11, 3)
    assert rows(lease("x", begin, begin + HOUR_S, gpus=0)) == [("2026-11", "a", 0.0, 8.0, 1)]


def test_a_lease_over_the_end_of_a_year_counts_in_all_its_months() -> None:
    one = lease("x", at(2026, 11, 30, 23), at(2027, 1, 1, 3), workers=1)
    found = rows(one)
    assert found == [("2026-11", "a", 1.0, 0.0, 1), ("2026-12", "a", 744.0, 0.0, 1), ("2027-01", "a", 3.0, 0.0, 1)]


def test_what_is_held_counts_up_to_now_and_a_job_once() -> None:
    now_s = at(2026, 11, 3, 5)
    leases = [lease("x", at(2026, 11, 3, 1), at(2026, 11, 3, 2)), lease("x", at(2026, 11, 3, 4), None)]
    assert rows(*leases, now_s=now_s) == [("2026-11", "a", 4.0, 0.0, 1)]


def test_a_clock_that_went_backwards_takes_nothing_away() -> None:
    begin = at(2026, 11, 3)
    assert rows(lease("x", begin, begin - HOUR_S), lease("y", begin, None), now_s=begin - 9.0) == [
        ("2026-11", "a", 0.0, 0.0, 2)
    ]


@pytest.mark.parametrize("month", ["2026", "2026-13", "2026-1", "0000-01", "november", "2026-11-01", "٢٠٢٦-11", ""])
def test_what_is_no_month_is_refused(month: str) -> None:
    with pytest.raises(QueueError, match="is no month: write it as 2026-11"):
        month_begins_s(month)
