"""The commands of the queue against a real server and processes of this machine."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from orchestrator.cli import run_argument
from tests.support.gangs import ROOT
from tests.support.processes import closed_port, wait_for
from tests.support.server import Server, server
from tests.support.shell import SLEEPS, Shell


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("server"), local=True) as found:
        yield found


@pytest.fixture
def fleetune(here: Server, tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(here, tmp_path)
    yield shell
    left = [job["job_id"] for job in json.loads(shell.good("queue", "--json"))]
    if left:
        shell("cancel", *left)
        wait_for(lambda: json.loads(shell.good("queue", "--json")) == [], "nothing is left", 120.0)


def test_submit_prints_the_id_and_says_on_stderr_what_becomes_of_it(fleetune: Shell) -> None:
    code, printed, errors = fleetune("submit", fleetune.command("echo hi"), "--wait")
    assert code == 0 and printed.startswith("does-") and len(printed.split()) == 1
    job = printed.strip()
    assert f"queued {job} (command, 1 x 1 CPU, tenant default)" in errors and f"{job} succeeded" in errors
    assert f"{job}  succeeded" in fleetune.good("queue", "--all")
    assert "no job waits or runs" in fleetune.good("queue")
    page = fleetune.good("status", job)
    assert "succeeded" in page and "submitted by local" in page and f"fleetune logs {job}" in page


def test_follow_prints_all_ranks_to_the_end_and_logs_says_it_again(fleetune: Shell) -> None:
    spec = fleetune.command("echo begin $RANK; sleep 1; echo end $RANK", more="resources: {num_workers: 2}\n")
    code, printed, _ = fleetune("submit", spec, "--follow")
    job, *lines = printed.splitlines()
    assert code == 0
    assert sorted(line.rpartition("] ")[2] for line in lines) == ["begin 0", "begin 1", "end 0", "end 1"]
    assert all(line.startswith("output | ") for line in lines)
    assert fleetune.good("logs", job, "-f").splitlines() == lines
    assert len(fleetune.good("logs", job, "--tail", "1", "--source", "output").splitlines()) == 1
    told = [json.loads(line) for line in fleetune.good("logs", job, "--json").splitlines()]
    assert {one["source"] for one in told} == {"output"} and len(told) == 4


@pytest.mark.parametrize(("script", "expected"), [("echo the reason >&2; exit 3", 1), ("kill -9 $$", 1)])
def test_a_job_that_fails_says_why_and_the_exit_code_does(fleetune: Shell, script: str, expected: int) -> None:
    code, printed, errors = fleetune("submit", fleetune.command(script), "--wait")
    job = printed.strip()
    assert code == expected
    assert f"job {job} failed" in errors and f"fleetune retry {job}" in errors and f"fleetune logs {job}" in errors
    if "reason" in script:
        assert "the reason" in errors


def test_a_cancelled_job_ends_the_wait_with_130(fleetune: Shell, here: Server) -> None:
    spec = fleetune.file(SLEEPS)
    command = [sys.executable, "-m", "orchestrator", "submit", spec, "--wait", "--url", here.url]
    waits = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert waits.stdout is not None
    job = waits.stdout.readline().strip()
    wait_for(lambda: fleetune.state(job) == "running", "it runs")
    assert "asked to end" in fleetune.good("cancel", job)
    _, errors = waits.communicate(timeout=120)
    assert waits.returncode == 130 and "was cancelled" in errors


def test_a_chain_runs_in_order_and_a_failed_parent_takes_its_children_along(fleetune: Shell) -> None:
    may_fail = fleetune.folder / "may-fail"
    waits = f"until [ -e {may_fail} ]; do sleep 0.1; done; exit 4"
    first = fleetune.good("submit", fleetune.command(waits, "first")).strip()
    second = fleetune.good("submit", fleetune.command("true", "second"), "--after", first[:7]).strip()
    assert f"after {first}" in fleetune.good("queue")
    wait_for(lambda: fleetune.state(first) == "running", "the parent runs")
    may_fail.touch()
    wait_for(lambda: fleetune.state(second) == "failed", "the child fails too")
    assert "parent-failed" in fleetune.good("status", second)
    code, _, errors = fleetune("submit", fleetune.command("true", "third"), "--after", first)
    assert code == 2 and first in errors and "failed" in errors
    code, printed, errors = fleetune("retry", second)
    assert (code, printed) == (2, "") and "it would fail at once" in errors
    assert f"{first}, which it comes after, has failed" in errors and f"fleetune retry {first} {second}" in errors
    assert fleetune.state(second) == "failed"
    assert fleetune.good("retry", second, first).split() == [first, "queued", second, "queued"]
    wait_for(lambda: fleetune.state(second) == "failed", "the child fails once more")
    lines = fleetune.good("events", "--job", first).splitlines()
    assert [line.partition(f"Z  {first}  ")[2].partition(":")[0] for line in lines[:4]] == [
        "submitted by local", lines[1].partition(f"{first}  ")[2], "runs", "has failed",
    ]  # fmt: skip
    assert " starts on " in lines[1] and sum("exit code 4" in line for line in lines) == 2


def test_several_jobs_are_asked_and_each_that_refuses_says_so(fleetune: Shell) -> None:
    ended = fleetune.good("submit", fleetune.command("true"), "--wait").strip()
    runs = fleetune.sleeping()
    code, printed, errors = fleetune("cancel", ended, "nothing-like-it", runs, "nor!this")
    assert code == 2 and printed.splitlines() == [f"{runs}  asked to end (running)"]
    assert len(errors.splitlines()) == 3 and all(one in errors for one in (ended, "nothing-like-it", "nor!this"))
    code, printed, errors = fleetune("cancel", "zzz", "yyy")
    assert (code, printed, len(errors.splitlines())) == (2, "", 2) and "'zzz'" in errors and "'yyy'" in errors


def test_pause_resume_retry_and_priority(fleetune: Shell) -> None:
    job = fleetune.sleeping()
    assert fleetune.good("pause", job)
    wait_for(lambda: f"fleetune resume {job}" in fleetune.good("queue"), "it is paused")
    assert "priority 7" in fleetune.good("priority", job, "--to", "7")
    fleetune.good("resume", job)
    wait_for(lambda: fleetune.state(job) == "running", "it runs again")
    fleetune.good("cancel", job)
    wait_for(lambda: fleetune.state(job) == "cancelled", "it ends")
    assert "queued" in fleetune.good("retry", job)
    code, _, errors = fleetune("retry", job)
    assert code == 2 and "has not ended" in errors
    code, _, errors = fleetune("priority", job, "--to", "1001")
    assert code == 2 and "-1000 to 1000" in errors


def test_a_start_of_an_id_is_enough_where_it_means_one_job(fleetune: Shell) -> None:
    one = fleetune.good("submit", fleetune.command("true", "unique-name"), "--wait").strip()
    assert one in fleetune.good("status", "unique-n")
    fleetune.good("submit", fleetune.command("true", "unique-name"), "--wait")
    code, _, errors = fleetune("status", "unique-n")
    assert code == 2 and "may mean several jobs" in errors and one in errors
    code, _, errors = fleetune("status", one[:-1] + "!")
    assert code == 2 and "no job has an id like" in errors
    code, _, errors = fleetune("status", "uniqe-name")
    assert code == 2 and "there is no job 'uniqe-name'" in errors and "did you mean unique-name-" in errors


def test_a_sweep_queues_each_combination_and_the_queue_shows_what_differs(fleetune: Shell) -> None:
    spec = fleetune.command("true", "sweeps")
    code, printed, errors = fleetune(
        "submit", spec, "--sweep", "env.SHARD=0,1", "--sweep", "resources.cpus_per_worker=1,2", "--name", "four"
    )
    assert code == 0, errors
    jobs = printed.split()
    assert [job.rpartition("-")[0] for job in jobs] == [
        "four-shard0-cpw1", "four-shard0-cpw2", "four-shard1-cpw1", "four-shard1-cpw2",
    ]  # fmt: skip
    shown = {job["job_id"]: job["labels"] for job in json.loads(fleetune.good("queue", "--all", "--json"))}
    assert [shown[job] for job in jobs] == [{"resources.cpus_per_worker": one} for one in ("1", "2", "1", "2")]
    assert "cpus_per_worker=2" in fleetune.good("queue", "--all")
    assert "resources.cpus_per_worker=2" in fleetune.good("status", jobs[1])
    code, printed, errors = fleetune("submit", spec, "--sweep", "resources.gpu=0,1")
    assert code == 2 and not printed and "resources.gpu" in errors


def test_runs_and_jobs_are_found_by_commands_of_either(fleetune: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_argument, "ANSWER_S", 240.0)
    job = fleetune.sleeping()
    code, _, errors = fleetune("show", job, "--storage", str(fleetune.folder))
    assert code == 2 and f"{job} is a command job without a run: fleetune status {job}" in errors
    code, _, errors = fleetune("stop", job[:-2], "--storage", str(fleetune.folder))
    assert code == 2 and f"fleetune pause {job} saves" in errors and f"fleetune cancel {job} ends it" in errors
    code, _, errors = fleetune("status", "mails-20261124-115900-0001")
    assert code == 2 and "fleetune show mails-20261124-115900-0001" in errors


def test_one_key_gives_one_job(fleetune: Shell) -> None:
    spec = fleetune.command("true")
    first = fleetune.good("submit", spec, "--key", "monday")
    assert fleetune.good("submit", spec, "--key", "monday") == first
    code, _, errors = fleetune("submit", fleetune.command("false"), "--key", "monday")
    assert code == 2 and "monday" in errors


def test_why_says_what_a_job_waits_for(fleetune: Shell) -> None:
    paused = fleetune.sleeping()
    fleetune.good("cordon", *(node["node_id"] for node in json.loads(fleetune.good("nodes", "--json"))))
    try:
        waits = fleetune.good("submit", fleetune.command("true", "waits")).strip()
        text = fleetune.good("why", waits)
        assert waits in text and len(text) > 30
        assert json.loads(fleetune.good("why", waits, "--json"))["text"]
        assert paused in fleetune.good("queue").splitlines()[1]
    finally:
        fleetune.good("uncordon", *(node["node_id"] for node in json.loads(fleetune.good("nodes", "--json"))))
    wait_for(lambda: fleetune.state(waits) == "succeeded", "it runs")


def test_nodes_are_put_aside_with_a_reason_and_used_again(fleetune: Shell) -> None:
    node = json.loads(fleetune.good("nodes", "--json"))[0]["node_id"]
    assert "cordoned" in fleetune.good("cordon", node[:2], "--reason", "fan is loud")
    assert "fan is loud" in fleetune.good("nodes")
    assert "drained" in fleetune.good("drain", node)
    assert "in use" in fleetune.good("uncordon", node)
    code, _, errors = fleetune("drain", "no-such-node")
    assert code == 2 and "there is no node 'no-such-node'" in errors


def test_tenants_are_made_and_changed_in_part(fleetune: Shell) -> None:
    assert "vision" in fleetune.good("tenants", "set", "vision", "--weight", "2", "--limit", "A100=8")
    fleetune.good("tenants", "set", "vision", "--guaranteed", "4")
    told = {one["name"]: one for one in json.loads(fleetune.good("tenants", "--json"))}
    assert (told["vision"]["weight"], told["vision"]["guaranteed"][0]["gpus"]) == (2.0, 4)
    assert told["vision"]["limit"] == [{"accelerator_type": "A100", "gpus": 8}]
    assert "8 A100" in fleetune.good("tenants", "list")
    assert fleetune.good("tenants", "--json", "list") == fleetune.good("tenants", "list", "--json")
    job = fleetune.good("submit", fleetune.command("true"), "--tenant", "vision", "--wait").strip()
    assert "vision" in fleetune.good("status", job)
    for command in (["submit", fleetune.command("true")], ["queue"], ["usage"]):
        code, printed, errors = fleetune(*command, "--tenant", "visoin")
        assert (code, printed) == (2, "") and "there is no tenant 'visoin'; did you mean vision?" in errors
    assert job in fleetune.good("queue", "--all", "--tenant", "vision")
    code, _, errors = fleetune("usage", "--tenant", "zzz")
    assert code == 2 and "there is no tenant 'zzz': there are default, vision" in errors


def test_a_member_is_told_the_same_of_tenants_that_are_others_and_that_are_not_there(tmp_path: Path) -> None:
    with server(tmp_path, local=True) as own:
        root = own.token("root", "admin")
        shell = Shell(own, tmp_path)
        shell.token = root
        for name in ("vision", "speech"):
            shell.good("tenants", "set", name)
        code, _, errors = shell("tokens", "add", "anna", "--role", "member")
        assert code == 2 and "--tenant NAME" in errors and "fleetune tenants set NAME" in errors
        code, _, errors = shell("tokens", "add", "anna", "--tenant", "visio")
        assert code == 2 and "did you mean vision?" in errors
        shell.token = shell.good("tokens", "add", "anna", "--tenant", "vision").strip()
        for command in ("queue", "usage"):
            said = {shell(command, "--tenant", other) for other in ("speech", "zzz")}
            assert {(code, errors.replace("speech", "X").replace("zzz", "X")) for code, _, errors in said} == {
                (2, "error: there is no tenant 'X': there is vision\n")
            }
            shell.good(command, "--tenant", "vision")
        shell.token = "ft_wrong"
        code, _, errors = shell("queue")
        assert code == 2 and "ask an admin" in errors and "ft_wron... of FLEETUNE_TOKEN: put the new one" in errors


def test_usage_and_events_tell_what_has_been(fleetune: Shell) -> None:
    job = fleetune.good("submit", fleetune.command("true"), "--wait").strip()
    assert any(row["jobs"] for row in json.loads(fleetune.good("usage", "--json")))
    assert "TENANT" in fleetune.good("usage") and "no usage" in fleetune.good("usage", "--month", "1999-01")
    code, _, errors = fleetune("usage", "--month", "May")
    assert code == 2 and "as in 2026-11" in errors
    lines = fleetune.good("events", "--limit", "3").splitlines()
    assert len(lines) == 3 and job in lines[-1]
    of_job = [json.loads(line) for line in fleetune.good("events", "--job", job, "--json").splitlines()]
    assert of_job[0]["message"].startswith("submitted") and {one["job_id"] for one in of_job} == {job}
    assert fleetune.good("events", "--limit", "0") == ""


@pytest.mark.parametrize(("command", "code"), [("events", 0), ("logs", 130)])
def test_ctrl_c_ends_what_is_followed_without_a_word(fleetune: Shell, command: str, code: int) -> None:
    job = fleetune.good("submit", fleetune.command("echo begun; sleep 300", "follows")).strip()
    wait_for(lambda: "begun" in fleetune.good("logs", job), "it writes")
    typed = [command, "-f", *([job] if command == "logs" else ["--job", job])]
    follows = subprocess.Popen(
        [sys.executable, "-m", "orchestrator", *typed, "--url", fleetune.url],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # who runs the tests may ignore it
    )  # fmt: skip
    with follows:
        try:
            assert follows.stdout is not None and follows.stdout.readline()
            follows.send_signal(signal.SIGINT)
            _, errors = follows.communicate(timeout=120)
        finally:
            follows.kill()
    assert (follows.returncode, errors) == (code, "")


def test_what_is_wrong_with_several_specs_is_said_of_their_files(fleetune: Shell) -> None:
    good = fleetune.command("true", "good")
    away = fleetune.command("true", "away", "working_dir: /no/such\n")
    lost = fleetune.command("true", "lost", "queue:\n  after: [gone-123456]\n")
    code, printed, errors = fleetune("submit", good, away, lost)
    assert (code, printed) == (2, "")
    assert f"{away}:4: working_dir: /no/such" in errors and f"{lost}:5: queue.after: " in errors
    assert "spec 2" not in errors and "spec 3" not in errors and good not in errors
    code, _, errors = fleetune("submit", fleetune.file("kind: comand\n"), good, fleetune.file("[]", "list.yaml"))
    assert code == 2 and "job.yaml:1: kind: " in errors and "list.yaml: " in errors


def test_a_server_whose_python_is_not_there_does_not_start_and_says_at_once_that_it_is_at_it(
    here: Server, tmp_path: Path
) -> None:
    done = here.run("serve", "--port", "0", "--python", "/no/such", "--store", str(tmp_path / "queue.db"))
    first, second = done.stderr.splitlines()
    assert done.returncode == 2 and done.stdout == "" and first == "fleetune serve: starting ..."
    assert second.startswith("error: --python /no/such: there is no such program on this machine")


BAD: list[tuple[str, Callable[[Shell], list[str]], str]] = [
    ("no such file", lambda shell: ["submit", "gone.yaml"], "gone.yaml"),
    ("a schema of the future", lambda shell: ["submit", shell.file(SLEEPS + "version: 2\n")], "upgrade"),
    ("an unknown key", lambda shell: ["submit", shell.file(SLEEPS + "gpus: 2\n")], "resources.gpus_per_worker"),
    ("a priority out of range", lambda shell: ["submit", shell.file(SLEEPS), "--priority", "1001"], "out of range"),
    ("a priority in the file", lambda shell: ["submit", shell.file(SLEEPS + "queue: {priority: -1001}\n")], "-1000"),
    ("an unknown parent", lambda shell: ["submit", shell.file(SLEEPS), "--after", "gone-123456"], "gone-123456"),
    ("too many GPUs", lambda shell: ["submit", shell.file(SLEEPS + "resources: {gpus_per_worker: 64}\n")], "GPU"),
    (
        "a folder that is not there",
        lambda shell: ["submit", shell.file(SLEEPS + "working_dir: /no/such\n")],
        "/no/such",
    ),
    ("an unknown secret", lambda shell: ["submit", shell.file(SLEEPS + "queue: {secrets: [GONE]}\n")], "GONE"),
    ("an empty key", lambda shell: ["submit", shell.file(SLEEPS), "--key", ""], "--key"),
    ("two to follow", lambda shell: ["submit", shell.file(SLEEPS), shell.file(SLEEPS), "--follow"], "--follow"),
    ("an unknown state", lambda shell: ["queue", "--state", "runing"], "did you mean running?"),
    ("an unknown log", lambda shell: ["why", "gone-123456"], "there is no job 'gone-123456'"),
    ("no quota", lambda shell: ["tenants", "set", "x", "--limit", "many"], "--limit"),
    ("no tenant's name", lambda shell: ["tenants", "set", "a b"], "tenant's name"),
    ("no URL", lambda shell: ["queue", "--url", "localhost:8400"], "did you mean http://localhost:8400?"),
]


@pytest.mark.parametrize(("arguments", "said"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_input_is_one_clear_message_and_exit_code_2(
    fleetune: Shell, arguments: Callable[[Shell], list[str]], said: str
) -> None:
    code, printed, errors = fleetune(*arguments(fleetune))
    assert code == 2, (printed, errors)
    assert said in errors and "Traceback" not in errors and "unexpected" not in errors
    assert json.loads(fleetune.good("queue", "--json")) == []


def test_a_server_that_is_not_there_is_said_with_its_url_and_what_to_start(fleetune: Shell) -> None:
    with closed_port() as port:
        url = f"http://127.0.0.1:{port}"
        for command in (["queue"], ["submit", fleetune.file(SLEEPS)], ["cancel", "a-1"], ["nodes"], ["events"]):
            code, _, errors = fleetune(*command, "--url", url)
            assert code == 1 and url in errors and "fleetune serve" in errors and len(errors.splitlines()) == 1


def test_completion_offers_what_a_command_can_act_on_and_is_silent_without_a_server(fleetune: Shell) -> None:
    ended = fleetune.good("submit", fleetune.command("true", "completes"), "--wait").strip()
    failed = fleetune("submit", fleetune.command("false", "completely"), "--wait")[1].strip()
    runs = fleetune.good("submit", fleetune.command("sleep 300", "complete")).strip()
    paused = fleetune.good("submit", fleetune.command("true", "compl"), "--after", runs).strip()
    fleetune.good("pause", paused)
    wait_for(lambda: fleetune.state(runs) == "running", "it runs")

    def offered(typed: str, url: str = fleetune.url) -> set[str]:
        asked = {
            "_FLEETUNE_COMPLETE": "complete_bash",
            "COMP_WORDS": f"fleetune {typed}",
            "COMP_CWORD": str(len(typed.split(" "))),
        }
        command = [sys.executable, "-c", "from orchestrator.cli.app import main; main()"]
        done = subprocess.run(command, cwd=ROOT, env={**asked, "FLEETUNE_URL": url}, capture_output=True, text=True)
        assert done.stderr == ""
        return set(done.stdout.split())

    def offers(typed: str, *expected: str, url: str = fleetune.url) -> None:
        """Nothing is offered where the server takes longer than a shell should wait: then once more."""
        found = set[str]()

        def asked() -> bool:
            found.clear()
            found.update(offered(typed, url))
            return bool(found)

        wait_for(asked, f"something is offered for {typed!r}", 240.0)
        assert found == {*expected}

    offers("status compl", ended, failed, runs, paused)
    offers("cancel compl", runs, paused)
    offers(f"cancel {runs} compl", paused)
    offers("pause compl", runs)
    offers("resume compl", paused)
    offers("retry compl", failed)
    offers("submit x.yaml --after compl", ended, runs, paused)
    offers("queue --state run", "running")
    offers("queue --state failed,can", "failed,cancelled")
    offers("usage --tenant def", "default")
    offers(f"logs {runs} --source out", "output")
    assert offered("logs gone --source out") == set()
    with closed_port() as port:
        other = f"http://127.0.0.1:{port}"
        assert offered("status compl", other) == set()
        offers(f"tenants --url {fleetune.url} set def", "default", url=other)
    for shell in ("bash", "zsh", "fish"):
        assert "_FLEETUNE_COMPLETE" in fleetune.good("completion", shell)
