"""What `fleetune simulate` shows: the terminal's table, the HTML page, and what it refuses."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.errors import InputError
from orchestrator.cli import app as cli
from orchestrator.cli.commands.simulate import as_json, check_setup, check_targets, shown_progress
from orchestrator.pages import svg
from orchestrator.scheduling.forecast.queue_simulation import Attempt, EndReason
from orchestrator.simulate.figures import figures
from orchestrator.simulate.page import headline, page
from orchestrator.simulate.report import report
from orchestrator.simulate.values import Setup, Simulated, TraceJob

SVG = "{http://www.w3.org/2000/svg}"
NASTY = "<script>alert('x')</script> & \x1b[31m"


def simulated(nodes: int = 4, tenants: int = 3, wait_s: float = 600.0, name: str = "team") -> Simulated:
    """A job of 8 GPUs for each tenant, which waits and then runs for some hours."""
    jobs = tuple(TraceJob(at * 100.0, 3600.0 * (at + 1), 8, f"{name}-{at}") for at in range(tenants))
    starts = (job.submit_s + wait_s for job in jobs)
    attempts = tuple(
        Attempt(at, start_s, start_s + jobs[at].duration_s, ((at % nodes, 8),), EndReason.FINISHED)
        for at, start_s in enumerate(starts)
    )
    return Simulated(jobs, attempts, Setup(nodes=nodes), 0.5)


def parsed(html: str) -> ElementTree.Element:
    return ElementTree.fromstring(html.partition("\n")[2])


def row_of(text: str, label: str) -> list[str]:
    return next(line for line in text.splitlines() if line.startswith(label)).removeprefix(label).split()


def test_terminal_page_has_units_and_is_short() -> None:
    text = page([("4 nodes", figures(simulated()))])
    assert row_of(text, "wait, mean") == ["10.0", "min"] and row_of(text, "completion time, mean") == ["2.17", "h"]
    assert row_of(text, "preemptions") == ["0"] and "change" not in text and len(text.splitlines()) <= 18


def test_two_simulations_are_compared_in_one_unit() -> None:
    text = page([("4 nodes", figures(simulated())), ("2 nodes", figures(simulated(2, wait_s=7200.0)))])
    assert text.splitlines()[0].split() == ["4", "nodes", "2", "nodes", "change"]
    assert row_of(text, "wait, mean") == ["0.17", "h", "2.00", "h", "x", "12.0"]
    assert row_of(text, "preemptions") == ["0", "0", "same"]
    assert max(map(len, text.splitlines())) <= 80


def test_figure_that_one_simulation_lacks_is_a_dash() -> None:
    small = replace(simulated(), jobs=tuple(replace(job, num_gpus=1) for job in simulated().jobs))
    text = page([("a", figures(simulated())), ("b", figures(small))])
    assert row_of(text, "slowdown, gangs of 8 GPUs or more")[1:] == ["–"]


def test_headline_says_what_was_simulated() -> None:
    setup = Setup(nodes=4, policy="easy", jitter=3, failures_per_node_day=0.1)
    text = headline(replace(simulated(), setup=setup))
    for part in (
        "3 jobs of 3 tenants",
        "policy easy",
        "an interruption: 60 s",
        "seed 3",
        "0.1 per node and day",
    ):
        assert part in text
    assert "seed" not in headline(simulated())


def test_html_page_parses_and_has_two_plots_and_no_script() -> None:
    html = report([("4 nodes", simulated())])
    root = parsed(html)
    assert [plot.get("aria-label") for plot in root.iter(f"{SVG}svg")] == ["GPUs in use", "GPUs that jobs wait for"]
    assert "default-src 'none'" in html and "<script" not in html and "32 GPUs in total" in html
    assert "4 nodes x 8 GPUs" in (root.findtext(".//h1") or "")


def test_tenants_names_are_escaped_wherever_they_stand() -> None:
    html = report([("one", simulated(name=NASTY))])
    parsed(html)
    assert "<script" not in html and "\x1b" not in html and "&lt;script&gt;" in html


def test_html_page_of_two_simulations_has_a_column_for_each() -> None:
    root = parsed(report([("4 nodes", simulated()), ("2 nodes", simulated(2))]))
    heads = ["".join(head.itertext()) for head in root.iter("th")]
    assert heads[1:4] == ["4 nodes", "2 nodes", "change"] and len(list(root.iter(f"{SVG}svg"))) == 4


def test_seven_tenants_have_colours_and_the_others_share_one() -> None:
    html = report([("one", simulated(nodes=10, tenants=10))])
    root = parsed(html)
    legend = next(one for one in root.iter("p") if one.get("class") == "legend")
    names = ["".join(item.itertext()).strip() for item in legend]
    assert names[0] == "3 others" and names[-1] == "team-9" and len(names) == svg.MOST_AREAS


def test_page_of_a_lone_job_that_never_waits_parses() -> None:
    parsed(report([("one", simulated(tenants=1, wait_s=0.0))]))


def test_layers_lie_on_each_other_and_the_limit_across() -> None:
    areas = [svg.Area("a", (1.0, 3.0), 0), svg.Area("b", (1.0, 1.0), 1), svg.Area("none", (0.0, 0.0), 2)]
    words: dict[str, Any] = {"title": "t", "x_label": "hours", "y_label": "GPUs"}
    plot = svg.stacked_area((0, 1, 2), areas, tips=("first", "second"), limit=svg.Mark(4.0, "all"), **words)
    root = ElementTree.fromstring(plot)
    a, b = (path.get("d", "") for path in root.iter(f"{SVG}path"))
    top_of_a = a[1:-1].split("L")[:4]
    assert b[1:-1].split("L")[4:] == top_of_a[::-1]  # b's bottom is a's top, walked back
    assert [title.text for title in root.iter(f"{SVG}title")] == ["first", "second"] and ">all<" in plot
    assert svg.stacked_area((0,), areas, tips=(), **words) == ""


def test_json_has_the_figures_and_those_of_the_second_simulation() -> None:
    alone, both = json.loads(as_json([("a", simulated())])), as_json([("a", simulated()), ("b", simulated(2))])
    assert list(alone) == list(asdict(figures(simulated()))) and "\n" not in both
    assert list(json.loads(both)) == [*alone, "what_if"] and list(json.loads(both)["what_if"]) == list(alone)


@pytest.mark.parametrize(
    ("changes", "what_if_nodes", "message"),
    [
        ({"nodes": 0}, None, "--nodes must be at least 1: a cluster without nodes runs nothing"),
        ({"gpus_per_node": 0}, None, "--gpus-per-node must be at least 1: a cluster without GPUs"),
        ({}, 0, "--what-if-nodes must be at least 1"),
        ({"jitter": -1}, None, "--jitter must be a number of at least 0"),
        ({"preemption_cost_s": -1.0}, None, "--preemption-cost-s must be a number of at least 0"),
        ({"preemption_cost_s": float("nan")}, None, "but is nan"),
        ({"failures_per_node_day": float("inf")}, None, "--failures-per-node-day must be"),
        ({"policy": "eazy"}, None, "did you mean 'easy'?"),
    ],
)
def test_impossible_setup_is_refused_by_the_option_s_name(
    changes: dict[str, float], what_if_nodes: int | None, message: str
) -> None:
    with pytest.raises(InputError) as caught:
        check_setup(replace(Setup(nodes=1), **changes), what_if_nodes)  # type: ignore[arg-type]
    assert message in str(caught.value)


@pytest.mark.parametrize("targets", [("t.csv", None), (None, "t.csv"), ("x", "x")])
def test_no_file_takes_the_place_of_another(targets: tuple[str | None, str | None]) -> None:
    with pytest.raises(InputError):
        check_targets("t.csv", *targets)


def test_no_nodes_are_one_message_and_exit_code_2(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.app, ["simulate", str(tmp_path / "gone.csv"), "--nodes", "0"])
    wanted = "error: --nodes must be at least 1: a cluster without nodes runs nothing\n"
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", wanted)


def test_no_progress_is_shown_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with shown_progress("9 jobs", silent=False) as progress:
        assert progress is None
    assert capsys.readouterr().out == ""
