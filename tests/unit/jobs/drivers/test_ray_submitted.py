"""Which programs of `ray job submit` queue their job at an orchestrator, and how they find it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster.errors import InputError, SpecError
from cluster.ray.backend import KIND_KEY
from cluster.ray.client import environment_like
from cluster.ray.raylets import Raylet, raylet_of
from cluster.ray.runtime_env import digest_of_environment
from cluster.ray.session_record import FILE, SessionRecord, read_record, write_record
from cluster.settings import RAY_JOB, RayJob, ray_job
from jobs.drivers import ray_submitted
from jobs.drivers.ray_submitted import host_of_this_program, package_of, queued
from jobs.spec.finetune import Spec
from jobs.spec.load import spec_of

RECORD = SessionRecord("http://head:8400", "abc")


def spec() -> Spec:
    data = {"train": "s3://bucket/data.jsonl", "format": "text"}
    made = spec_of({"name": "n", "model": {"path": "org/m", "task": "causal-lm"}, "data": data, "storage_path": "/r"})
    assert isinstance(made, Spec)
    return made


def ray_says(monkeypatch: pytest.MonkeyPatch, **metadata: str) -> None:
    said = {"runtime_env": {}, "metadata": {"job_submission_id": "raysubmit_1", **metadata}}
    monkeypatch.setenv(RAY_JOB, json.dumps(said))


@pytest.mark.parametrize("text", ["", "no JSON", "[]", "{}", '{"metadata": {}}', '{"metadata": null}'])
def test_a_program_that_ray_has_not_started_is_no_submitted_job(text: str) -> None:
    assert ray_job({RAY_JOB: text}) is None
    assert ray_job({}) is None


def test_what_was_said_at_submission_is_known() -> None:
    text = json.dumps({"metadata": {"job_submission_id": "a", "tenant": "vision", "priority": 3}})
    assert ray_job({RAY_JOB: text}) == RayJob("a", {"job_submission_id": "a", "tenant": "vision", "priority": "3"})


def test_only_somebody_s_own_submitted_job_is_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEETUNE_URL", "http://head:8400")
    monkeypatch.delenv(RAY_JOB, raising=False)
    assert host_of_this_program() is None  # by hand
    ray_says(monkeypatch)
    found = host_of_this_program()
    assert found is not None and found[0].submission == "raysubmit_1" and found[1].url == "http://head:8400"
    monkeypatch.setenv("FLEETUNE_URL", "None")
    assert host_of_this_program() is None  # around the queue
    monkeypatch.setenv("FLEETUNE_URL", "http://head:8400")
    ray_says(monkeypatch, **{KIND_KEY: "program"})
    assert host_of_this_program() is None  # within a job of the orchestrator, whose room it has


@pytest.mark.parametrize("url", ["head:8400", "http://", "http://head:abc", "http://[x", "ftp://head"])
def test_a_url_that_is_none_is_said_at_once(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    ray_says(monkeypatch)
    monkeypatch.setenv("FLEETUNE_URL", url)
    with pytest.raises(InputError, match="is not the URL of a server"):
        host_of_this_program()


def test_without_a_raylet_above_it_there_is_no_orchestrator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLEETUNE_URL", raising=False)
    ray_says(monkeypatch)
    assert host_of_this_program() is None


def test_an_orchestrator_that_only_the_head_can_reach_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLEETUNE_URL", raising=False)
    ray_says(monkeypatch)
    found = {"record": SessionRecord("http://127.0.0.1:8400", "q"), "raylet": Raylet(Path("/tmp"), "gcs", False)}
    monkeypatch.setattr(ray_submitted, "raylet_above", lambda pid: found["raylet"])
    monkeypatch.setattr(ray_submitted, "read_record", lambda raylet: found["record"])
    with pytest.raises(ray_submitted.JobRefused, match=r"does not run on the head.*--host 0\.0\.0\.0"):
        host_of_this_program()
    found["raylet"] = Raylet(Path("/tmp"), "gcs", True)
    assert host_of_this_program() == (RayJob("raysubmit_1", {"job_submission_id": "raysubmit_1"}), found["record"])
    found |= {"record": SessionRecord("http://head:8400", "q"), "raylet": Raylet(Path("/tmp"), "gcs", False)}
    assert host_of_this_program() is not None


def test_a_raylet_is_known_by_its_command_line() -> None:
    words = ["/x/raylet", "--session_dir=/tmp/ray/session_1", "--gcs-address=10.0.0.1:6379", "--node_id=a", ""]
    assert raylet_of(words) == Raylet(Path("/tmp/ray/session_1"), "10.0.0.1:6379", False)
    assert raylet_of([*words, "--head"]) == Raylet(Path("/tmp/ray/session_1"), "10.0.0.1:6379", True)
    assert raylet_of(words[:2]) is None


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    head = Raylet(tmp_path, "10.0.0.1:6379", True)
    assert read_record(head) is None
    write_record(head, RECORD)
    assert read_record(head) == RECORD
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o644
    write_record(head, SessionRecord("http://other", "abc"))
    assert read_record(head) == SessionRecord("http://other", "abc")
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"url": "http://x"}'])
def test_a_file_that_is_no_record_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    assert read_record(Raylet(tmp_path, "", True)) is None


@pytest.mark.skipif(os.getuid() != 0, reason="gives a file to another user")
def test_a_record_that_a_stranger_has_put_there_is_none(tmp_path: Path) -> None:
    head = Raylet(tmp_path, "", True)
    write_record(head, RECORD)
    os.chown(tmp_path / FILE, 12345, 12345)
    assert read_record(head) is None
    os.chown(tmp_path, 12345, 12345)  # whose cluster it is
    assert read_record(head) == RECORD


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text(json.dumps({"url": "http://x", "queue": "q"}))
    (tmp_path / FILE).symlink_to(tmp_path / "elsewhere")
    assert read_record(Raylet(tmp_path, "", True)) is None


def test_the_submission_names_tenant_and_priority() -> None:
    job = RayJob("a", {"tenant": "vision", "priority": "-5"})
    assert (queued(spec(), job).queue.tenant, queued(spec(), job).queue.priority) == ("vision", -5)
    assert queued(spec(), RayJob("a", {})) == spec()
    with pytest.raises(SpecError, match="priority 'high': give a whole number"):
        queued(spec(), RayJob("a", {"priority": "high"}))


def test_the_package_is_the_folder_that_ray_has_unpacked() -> None:
    package = "/tmp/ray/session_1/runtime_resources/working_dir_files/_ray_pkg_1"
    assert package_of(package) == package_of(f"{package}/sub/folder") == package
    assert package_of("/home/anna") is None


def test_attempts_run_in_the_submitted_environment_without_what_names_its_server() -> None:
    given = {"pip": ["a"], "working_dir": "gcs://p.zip", "env_vars": {"A": "1", "FLEETUNE_TOKEN": "t"}}
    assert environment_like(SimpleNamespace(runtime_env=given)) == {**given, "env_vars": {"A": "1"}}
    assert environment_like(SimpleNamespace(runtime_env=None)) == environment_like(None) == {"env_vars": {}}


def test_a_submitted_process_is_known_by_what_not_everybody_knows_of_it() -> None:
    ours = {"env_vars": {"KEY": "secret"}, "working_dir": "gcs://p.zip", "pip": ["a"]}
    rays = {"working_dir": "gcs://p.zip", "env_vars": {"KEY": "secret"}, "pip": {"packages": ["a"], "pip_check": False}}
    assert digest_of_environment(ours) == digest_of_environment(rays)
    for other in ({}, {"working_dir": "gcs://p.zip"}, {**ours, "env_vars": {"KEY": "guess"}}):
        assert digest_of_environment(other) != digest_of_environment(ours)
    assert digest_of_environment({}) == digest_of_environment({"env_vars": {}, "working_dir": None})
