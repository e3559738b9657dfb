"""The troubles of a run, from its events: what is one trouble, what it cost, and what people read."""

from __future__ import annotations

from typing import Any

from jobs.remedies.outlier_text import rollback_report, skip_message, skip_report
from jobs.remedies.outliers import Outlier, Rollback
from jobs.run.checkpoints import StepHistory
from jobs.run.outcome import event
from jobs.run.remedies import RemedyReport, trouble_rows, troubles_of

RATE = 1e-3


class Journal:
    """The events of a run."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def __call__(self, kind: str, message: str, **data: Any) -> None:
        self.events.append(event(kind, message, **data).model_dump(mode="json"))

    def skips(self, step: int) -> None:
        outlier = Outlier("loss", 9.0, 3.0)
        report = skip_report(step, outlier, StepHistory(), RATE)
        report.tell(self, skip_message(step, outlier, None), stage="skip", step=step)

    def rows(self) -> list[tuple[str, str]]:
        return trouble_rows(troubles_of(self.events))


def test_steps_that_are_skipped_in_a_row_are_one_trouble_and_the_newest_advice_counts() -> None:
    told = Journal()
    for step in (80, 81, 82):
        told.skips(step)
    rollback_report(Rollback(1, 79, 82, (71, 82), 1.0, cuts_rate=False), 60, RATE).tell(told, stage="rollback", step=82)
    told("remedy", "outlying steps: 3 steps skipped", remedy="outlier_steps", stage="summary", step=100)
    assert told.rows() == [
        ("remedy", "step 80: its loss is 9; the median of the steps before is 3: skipped (3 times, until step 82)"),
        (
            "remedy",
            "steps 80 to 82 were outlying: the run goes back to the checkpoint of step 60 and skips the batches of "
            "steps 72 to 82 (cost: 22 steps computed again)",
        ),
        ("next time", "check the data of steps 72 to 82"),
    ]
    rollback_report(Rollback(2, 90, 93, None, 0.5), 0, RATE).tell(told, stage="rollback", step=93)
    told.skips(97)
    assert [one.times for one in troubles_of(told.events)] == [3, 1, 1, 1]


def test_what_a_run_computes_again_after_a_kill_is_the_same_trouble() -> None:
    """It was killed after it went back and before its next checkpoint: it skips the same steps and goes back again."""
    told = Journal()
    for attempt in range(3):
        for step in (80, 81, 82):
            told.skips(step)
        report = rollback_report(Rollback(1, 79, 82, (71, 82), 1.0, cuts_rate=False), 60, RATE)
        report.tell(told, stage="rollback", step=82, number=1)
        if not attempt:
            RemedyReport("hang", "rank 0 hung", "it is killed", "").tell(told, step=85)
    assert [(one.remedy, one.step, one.times) for one in troubles_of(told.events)] == [
        ("outlier_steps", 80, 3),
        ("outlier_steps", 82, 1),
        ("hang", 85, 1),
    ]
    rollback_report(Rollback(2, 79, 82, None, 0.5), 60, RATE).tell(told, stage="rollback", step=82, number=2)
    assert len(troubles_of(told.events)) == 4


def test_skipped_steps_that_a_resume_computes_again_count_once() -> None:
    told = Journal()
    for step in (80, 81, 80, 81, 82):
        told.skips(step)
    assert [(one.step, one.times, one.last_step) for one in troubles_of(told.events)] == [(80, 3, 82)]


def test_steps_that_are_skipped_again_after_lost_workers_count_once() -> None:
    told = Journal()
    told.skips(12)
    for cause in ("rank 1 was killed", "rank 0 was killed"):
        RemedyReport("lost_workers", cause, "they are started again", "").tell(told, step=14)
        told.skips(12)
    told.skips(16)
    assert [(one.remedy, one.step) for one in troubles_of(told.events)] == [
        ("outlier_steps", 12), ("lost_workers", 14), ("lost_workers", 14), ("outlier_steps", 16),
    ]  # fmt: skip


def test_what_stands_between_two_skips_of_a_step_decides_whether_they_are_one() -> None:
    lost, returned = ("lost_workers", "rank 1 was killed"), ("forgetting", "the loss rose")
    slow = ("straggler", "rank 1 computes slower")
    for between, times in (
        ([slow], 1),
        ([slow, lost], 1),
        ([returned, lost], 1),
        ([returned], 2),
        ([lost, returned], 2),
    ):
        told = Journal()
        told.skips(50)
        for remedy, cause in between:
            RemedyReport(remedy, cause, "acts", "").tell(told, step=60, host="h", ranks=[1])
        told.skips(50)
        assert sum(one.remedy == "outlier_steps" for one in troubles_of(told.events)) == times, between


def test_a_slow_rank_counts_once_however_often_the_workers_start() -> None:
    told = Journal()
    for start, ranks in enumerate(([1], [1], [2])):
        report = RemedyReport("straggler", f"{start + 2} times slower", "named", "", "look at host a")
        report.tell(told, step=start, host="a", ranks=ranks)
    assert [one.cause for one in troubles_of(told.events)] == ["2 times slower", "4 times slower"]


def test_attempts_that_end_for_one_cause_are_one_trouble() -> None:
    told = Journal()
    for cause, step in (("ECC error", 3), ("ECC error", 5), ("no storage", 5)):
        RemedyReport("machine", cause, "the attempt ends", "").tell(told, step=step)
    assert [(one.cause, one.times, one.last_step) for one in troubles_of(told.events)] == [
        ("ECC error", 2, 5), ("no storage", 1, 5),
    ]  # fmt: skip


def test_the_time_until_training_goes_on_belongs_to_the_newest_trouble_of_the_same_remedy() -> None:
    told = Journal()
    for rank in (0, 1):
        RemedyReport("hang", f"rank {rank} hung", "it is killed", "", "look at it", 2).tell(told, step=7)
    RemedyReport("forgetting", "the loss rose", "back", "", "lower it").tell(told, step=9)
    told("remedy", "training goes on", remedy="hang", effect="", seconds=12.3)
    assert [one.seconds for one in troubles_of(told.events)] == [None, 12.3, None]
    assert told.rows()[1:] == [
        ("remedy", "rank 1 hung: it is killed (cost: 12 s, 2 steps computed again)"),
        ("remedy", "the loss rose: back"),
        ("next time", "look at it"),
        ("next time", "lower it"),
    ]


def test_changes_of_earlier_attempts_and_other_events_are_no_troubles() -> None:
    """Older releases marked the former by their cause."""
    told = Journal()
    RemedyReport("out_of_memory", "an earlier attempt ran out", "less", "").tell(told, stage="earlier")
    told("remedy", "begins with 2", remedy="out_of_memory", cause="earlier", action="2 instead of 4", effect="")
    told("warning", "step 3 is skipped", step=3)
    told("remedy", "training goes on", remedy="hang", effect="", seconds=3.0)  # its cause was lost with the driver
    assert troubles_of(told.events) == () and told.rows() == []


def test_only_the_newest_of_many_troubles_are_shown() -> None:
    told = Journal()
    for rank in range(30):
        RemedyReport("hang", f"rank {rank} hung", "it is killed", "").tell(told)
    rows = told.rows()
    assert rows[0] == ("remedy", "20 troubles before, see the events") and rows[-1][1].startswith("rank 29")
    assert len(rows) == 11
