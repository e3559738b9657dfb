"""The figures of a comparison: means with intervals, what the runs of a method come to, and what is said of it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from jobs.comparison.figures import (
    Comparison,
    MethodFigures,
    RunFigures,
    figures_of_runs,
    findings,
    mean_of,
    quantile_of_t,
    rate_of,
)
from jobs.comparison.page import comparison_page, comparison_table, comparison_text
from jobs.search.report.edge import RateAtEdge


def run_figures(loss: float, general: float | None = None, before: float = 3.0, **changes: Any) -> RunFigures:
    metrics = {"eval_loss": loss, "eval_accuracy": 1 - loss, "loss": loss}
    steps = [
        {"step": step, "step_time_s": 9.0 if step == 1 else 2.0, "tokens_per_s": 5.0 if step == 1 else 100.0}
        for step in range(1, 11)
    ]
    if general is not None:
        metrics["eval_general_loss"] = general
    known: dict[str, Any] = {"before": {"eval_general_loss": before, "eval_loss": 0.7}, "steps": steps}
    known |= {"trained": 50, "parameters": 1000, "checkpoint_bytes": 600}
    return RunFigures(metrics=metrics, **known | changes)


def method(name: str, losses: list[float], rate: float | None = None, **changes: Any) -> MethodFigures:
    kind = name.partition("-")[0]
    values = {} if rate is None else {"learning_rate": rate}
    fields = figures_of_runs([run_figures(loss) for loss in losses]) if losses else {}
    return MethodFigures(**{"name": name, "method": kind, "sweep": name, "values": values, **fields, **changes})


def comparison(*methods: MethodFigures, metric: str = "eval_loss") -> Comparison:
    return Comparison(metric=metric, lower_is_better=metric == "eval_loss", device="GPU", methods=methods)


def test_the_interval_of_three_seeds_is_that_of_students_t() -> None:
    found = mean_of([1.0, 2.0, 3.0])
    assert found.mean == 2.0 and found.interval == pytest.approx(2.484, abs=1e-3)  # 4.3027 / sqrt(3)
    assert mean_of([5.0]).interval is None


@pytest.mark.parametrize(("degrees", "quantile"), [(1, 12.706), (9, 2.262), (10, 2.228), (30, 2.042), (99, 1.984)])
def test_quantiles_are_those_of_the_tables(degrees: int, quantile: float) -> None:
    assert quantile_of_t(degrees) == pytest.approx(quantile, abs=5e-3)


def test_the_runs_of_a_method_are_summed_up_over_their_seeds() -> None:
    fields = figures_of_runs([run_figures(0.4, 3.3), run_figures(0.6, 3.6)])
    assert fields["metrics"]["eval_loss"].values == (0.4, 0.6) and "loss" not in fields["metrics"]
    assert fields["general_change"].values == pytest.approx((0.1, 0.2))
    assert fields["run_s"] == 9.0 + 9 * 2.0, "all steps count, the slow first one too"
    assert fields["tokens_per_s"] == 100.0
    assert (fields["trained"], fields["parameters"], fields["checkpoint_bytes"]) == (50, 1000, 600)


def test_a_metric_or_a_change_that_not_all_seeds_have_is_left_out() -> None:
    fields = figures_of_runs([run_figures(0.4, 3.3), run_figures(0.6)])
    assert "eval_general_loss" not in fields["metrics"] and fields["general_change"] is None


def test_a_metric_that_is_no_number_is_left_out() -> None:
    """A user's function may return one. JSON has none, so comparison.json could not be read."""
    odd = [run_figures(loss)._replace(before={"eval_f1": math.nan}) for loss in (0.4, 0.6)]
    fields = figures_of_runs([one._replace(metrics={**one.metrics, "eval_f1": math.nan}) for one in odd])
    assert "eval_loss" in fields["metrics"] and "eval_f1" not in fields["metrics"] and fields["before"] == {}
    found = comparison(method("full", [], **fields))
    assert Comparison.model_validate_json(found.model_dump_json()) == found


def test_the_peak_is_the_largest_of_all_steps_and_none_where_nothing_was_measured() -> None:
    steps = [{"step_time_s": 1.0, "tokens_per_s": 1.0, "max_memory_bytes": size} for size in (5, 9, 7)]
    assert figures_of_runs([run_figures(0.4, steps=steps), run_figures(0.4)])["peak_memory_bytes"] == 9
    assert figures_of_runs([run_figures(0.4)])["peak_memory_bytes"] is None


def test_the_best_is_named_with_those_that_are_not_apart_from_it() -> None:
    near, far = method("lora-r4", [0.41, 0.43, 0.42], 1e-3), method("lora-r1", [0.6, 0.61, 0.62], 2e-3)
    said = findings(comparison(far, method("full", [0.40, 0.42, 0.41], 1e-4), near))
    assert said == [
        "loss is best with full",
        "its interval overlaps with that of lora-r4: more seeds may tell them apart",
        "best learning rates as multiples of that of full fine-tuning: 20 times with lora-r1, 10 times with lora-r4",
    ]


@pytest.mark.parametrize(
    ("is_within", "advice"),
    [
        (True, "extend its budget (fleetune sweep extend lora), or start again with a space that reaches lower"),
        (False, "start again with a space that reaches lower"),
    ],
)
def test_a_best_rate_at_the_edge_of_those_compared_is_told_for_its_method(is_within: bool, advice: str) -> None:
    edge = RateAtEdge(end="lowest", rate=1e-3, compared=3, is_within=is_within)
    said = findings(comparison(method("full", [0.4, 0.5]), method("lora", [0.6, 0.7], at_edge=edge)))
    assert said[-1] == (
        "lora was best at the lowest of 3 compared learning rates (1.0e-03), and lower ones were not tried: " + advice
    )


def test_with_a_price_the_table_has_what_each_search_cost() -> None:
    found = comparison(method("full", [0.4, 0.5], device_hours=3.0), method("lora", [0.6, 0.7], device_hours=0.5))
    assert "cost" not in comparison_table(found)[0]
    priced = found.model_copy(update={"price": 2.5})
    heads, rows = comparison_table(priced)
    assert heads[-1] == "cost" and [row[-1] for row in rows] == ["7.50", "1.25"]
    note = "cost is that of the whole search, at 2.5 for an hour of one GPU"
    assert comparison_text(priced).endswith(note) and f"<p>{note}.</p>" in comparison_page(priced, "x")
    on_cpus = priced.model_copy(update={"device": "CPU", "cpus_per_worker": 4})
    assert comparison_table(on_cpus)[1][0][-1] == "1.88", "the price is that of a worker, as in a plan"


def test_the_meaning_of_the_interval_stands_below_the_table() -> None:
    said = "± is half of the 95 % confidence interval over the seeds"
    several, single = comparison(method("full", [0.4, 0.5])), comparison(method("full", [0.4]))
    assert said in comparison_text(several) and said in comparison_page(several, "x")
    assert "±" not in comparison_text(single)


def test_seeds_that_failed_are_named() -> None:
    said = findings(
        comparison(method("full", [0.4, 0.5], failed_seeds=1, failed_because="diverged"), method("lora", [0.6]))
    )
    assert "1 of 3 seeds failed with full and are not in its mean: diverged" in said
    alone = findings(comparison(method("full", [0.4], failed_seeds=2, failed_because="d"), method("lora", [0.6, 0.7])))
    assert not any("give seeds: 3" in one for one in alone)
    assert any("may be noise: its other seeds have failed" in one for one in alone)


def test_equal_means_have_no_winner_and_seeds_that_were_asked_for_are_not_advised() -> None:
    full, lora = method("full", [0.0, 0.0]), method("lora", [0.0, 0.0])
    assert findings(comparison(full, lora)) == ["loss is the same with full and lora"]
    worse = method("prompt", [0.5, 0.5])
    assert findings(comparison(worse, full, lora)) == ["loss is the same with full and lora"]
    single = comparison(method("full", [0.4]), method("lora", [0.5]))
    assert findings(single.model_copy(update={"seeds": 3}))[1].endswith("may be noise: give a larger budget")
    assert findings(single.model_copy(update={"seeds": 1}))[1].endswith("give seeds: 3, or a larger budget")


def test_where_more_is_better_the_order_is_the_other() -> None:
    found = comparison(method("full", [0.4]), method("lora", [0.5]), metric="eval_accuracy")
    assert [one.name for one in found.ranked] == ["full", "lora"]
    assert "so the differences may be noise: give seeds: 3, or a larger budget" in " ".join(findings(found))


def test_a_method_without_a_result_has_its_row_and_its_reason() -> None:
    failed = method("lora", [], status="failed", reason="every trial diverged")
    found = comparison(method("full", [0.4, 0.5], 1e-4), failed)
    heads, rows = comparison_table(found)
    assert rows[1][heads.index("loss")] == "-" and rate_of(failed) is None
    assert findings(found) == ["lora has no result: every trial diverged"]
    stopped = method("lora", [0.5, 0.6], status="interrupted", reason="stopped on request")
    assert findings(comparison(method("full", [0.4, 0.5]), stopped))[-1] == "lora did not finish: stopped on request"


def test_the_table_has_a_row_for_each_method_with_what_it_took() -> None:
    lora = method("lora", [0.5, 0.7], 1e-3, settings="rank 4", device_hours=0.25, trials=9)
    heads, (row,) = comparison_table(comparison(lora))
    cells = dict(zip(heads, row, strict=True))
    assert cells["method"] == "lora (rank 4)" and cells["trained"] == "50 (5.00%)" and cells["rate"] == "1.0e-03"
    assert cells["loss"].startswith("0.6000 ± 1.2706") and cells["accuracy"].startswith("0.4000")
    assert cells["tokens/s"] == "100" and cells["checkpoint"] == "600 B" and cells["one run"] == "27 s"
    assert cells["search"] == "0.25 GPU-hours, 9 trials" and cells["peak memory"] == "-"
    assert "general loss" not in heads


def test_general_text_has_a_column_where_a_method_was_scored_on_it() -> None:
    scored = figures_of_runs([run_figures(0.4, 3.3), run_figures(0.6, 3.6)])
    full = method("full", [], **scored)
    heads, (first, second) = comparison_table(comparison(full, method("lora", [0.4])))
    assert first[heads.index("general loss")].startswith("3.4500 (+15.0% ± ")
    assert second[heads.index("general loss")] == "-"


def test_the_page_loads_nothing_and_shows_no_markup_of_others() -> None:
    failed = method("lora", [], status="failed", reason="<script>alert(1)</script>")
    page = comparison_page(comparison(method("full", [0.4]), failed), "a<b")
    assert "<script" not in page and "&lt;script&gt;" in page and "<title>a&lt;b</title>" in page
    assert "http" not in page
    assert "0.4000" in page and "0.4000" in comparison_text(comparison(method("full", [0.4])))
