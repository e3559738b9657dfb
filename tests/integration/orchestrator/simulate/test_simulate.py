"""The command from a trace to a schedule, judged by a checker that shares no code with it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import orchestrator.cli.app as cli
from orchestrator.scheduling.forecast.queue_simulation import EndReason
from orchestrator.scheduling.policy import POLICIES
from orchestrator.simulate.engine import simulate
from orchestrator.simulate.figures import figures
from orchestrator.simulate.trace import read_trace
from orchestrator.simulate.values import Setup, TraceJob
from tests.support.schedulecheck import check_schedule

TRACE = str(Path(__file__).parents[3] / "support" / "trace_extract.csv")
KEYS = """policy mean_jct_s median_jct_s p90_jct_s p99_jct_s mean_wait_s mean_bounded_slowdown utilisation jain
longest_wait_s preemptions most_preemptions_of_a_job lost_gpu_share slowdown_of_big_gangs makespan_s wall_s"""


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_every_policy_gives_a_schedule_that_holds(policy: str, tmp_path: Path) -> None:
    out = str(tmp_path / "out.csv")
    arguments = ["simulate", TRACE, "--nodes", "6", "--policy", policy, "--schedule", out, "--json"]
    result = CliRunner().invoke(cli.app, [*arguments, "--preemption-cost-s", "120", "--jitter", "2"])
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert list(found) == KEYS.split()
    assert found["policy"] == policy
    assert check_schedule(TRACE, out, 6, 8, 120.0) == []
    assert (found["preemptions"] > 0) == POLICIES[policy].preemption


def test_the_same_seed_gives_the_same_schedule_and_another_seed_another() -> None:
    jobs = read_trace(TRACE, None)
    first, again, other = (simulate(jobs, Setup(6, jitter=seed)).attempts for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_the_default_policy_serves_everybody_better_than_first_come_first_served() -> None:
    jobs = read_trace(TRACE, None)
    ours, easy = (figures(simulate(jobs, Setup(6, policy=policy))) for policy in ("default", "easy"))
    assert ours.mean_jct_s < 0.8 * easy.mean_jct_s
    assert ours.slowdown_of_big_gangs is not None and easy.slowdown_of_big_gangs is not None
    assert ours.slowdown_of_big_gangs < easy.slowdown_of_big_gangs
    assert ours.lost_gpu_share < 0.01


@pytest.mark.parametrize("policy", [policy.name for policy in POLICIES.values() if not policy.preemption])
def test_without_interruptions_allowed_nobody_is_interrupted(policy: str) -> None:
    found = simulate(read_trace(TRACE, None), Setup(6, policy=policy))
    assert {one.reason for one in found.attempts} == {EndReason.FINISHED} and len(found.attempts) == 400


def test_a_failing_node_costs_the_work_since_the_newest_checkpoint_and_loses_no_job() -> None:
    jobs = tuple(TraceJob(0.0, 20_000.0, 8, "a") for _ in range(4))
    setup = Setup(nodes=2, policy="fifo", failures_per_node_day=20.0, preemption_cost_s=50.0, checkpoint_every_s=600.0)
    found = simulate(jobs, setup)
    failed = [one for one in found.attempts if one.reason is EndReason.NODE_FAILED]
    assert failed and all(one.lost_s == pytest.approx(50.0 + (one.end_s - one.start_s) % 600.0) for one in failed)
    for job in range(4):
        mine = [one for one in found.attempts if one.row == job]
        ran = sum(one.end_s - one.start_s - one.lost_s for one in mine)
        assert ran == pytest.approx(20_000.0) and [one.reason for one in mine].count(EndReason.FINISHED) == 1


def test_progress_goes_from_nothing_to_nearly_all() -> None:
    jobs = [TraceJob(float(number), 500.0, 1, "a") for number in range(3000)]
    said: list[float] = []
    simulate(jobs, Setup(nodes=8), said.append)
    assert said == sorted(said) and len(said) > 3 and 0 <= said[0] < said[-1] <= 1


def test_a_mistake_in_the_trace_is_one_message_with_its_line(tmp_path: Path) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("submit_s,duration_s,num_gpus,tenant\n0,10,1,a\n5,-3,1,a\n3,nan,99,a\n")
    result = CliRunner().invoke(cli.app, ["simulate", str(bad), "--nodes", "2"])
    assert result.exit_code == 2
    assert re.search(r"line 3: .*-3", result.stderr) and re.search(r"line 4: .*99", result.stderr)
    assert "Traceback" not in result.stderr
