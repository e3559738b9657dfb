"""What is let into the queue, and what is refused with which words."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from cluster.errors import CapacityError, FleetuneError, SpecError
from jobs.storage.locations import PROTOCOLS
from orchestrator.queue.errors import Forbidden, ParentFailed, QueueError, UnknownJob, UnknownTenant
from orchestrator.queue.records import Role
from orchestrator.queue.states import State
from orchestrator.queue.tenants import Restrictions, Tenant
from orchestrator.service.admission.admit import admit
from orchestrator.service.admission.clients import check_client
from orchestrator.service.admission.shared_paths import NotReadable
from orchestrator.service.context.caller import ANYBODY, Caller
from tests.support.queueworld import START_S
from tests.support.service import ANNA, BERT, VERA, ServiceWorld, command, finetune, queue, sweep
from tests.support.stores import go


@pytest.fixture
def world() -> Iterator[ServiceWorld]:
    made = ServiceWorld(4, 4, secrets={"TOKEN": "hidden"})
    yield made
    made.close()


def refused(world: ServiceWorld, *specs: Any, by: Caller = ANNA) -> tuple[type, str]:
    with pytest.raises(FleetuneError) as caught:
        admit(world.context, specs, by)
    return type(caught.value), str(caught.value)


def test_a_spec_becomes_a_job_of_the_callers_tenant(world: ServiceWorld) -> None:
    resources = {"num_workers": 2, "gpus_per_worker": 1, "cpus_per_worker": 3}
    on_end = {"webhook": "https://example.org/x"}
    (job,) = world.admit(command("eval", resources=resources, **queue(priority=-3, max_runtime_s=60, on_end=on_end)))
    assert (job.name, job.kind, job.tenant, job.submitted_by) == ("eval", "command", "a", "anna")
    assert str(job.gang) == "2 workers of 3 CPU and 1 GPU"
    assert (job.priority, job.max_runtime_s, job.preemptible, job.client) == (-3, 60.0, False, None)
    assert json.loads(job.on_end) == on_end
    assert json.loads(world.store.spec(job.job_id))["command"] == ["python", "-m", "evaluate"]


def test_what_trains_may_be_interrupted_unless_it_says_otherwise(world: ServiceWorld) -> None:
    jobs = world.admit(finetune(), finetune(**queue(preemptible=False)), command(**queue(preemptible=True)))
    assert [job.preemptible for job in jobs] == [True, False, True]
    assert [job.kind for job in jobs] == ["finetune", "finetune", "command"]


def test_whose_job_it_is(world: ServiceWorld) -> None:
    nobody, everywhere = Caller("nobody", Role.MEMBER), Caller("all", Role.VIEWER)
    assert refused(world, command(**queue(tenant="b")))[0] is Forbidden
    assert refused(world, command(**queue(tenant="nowhere")))[0] is Forbidden  # and not whether there is such a one
    assert refused(world, command(), by=VERA)[0] is Forbidden
    assert refused(world, command(), by=nobody)[0] is Forbidden
    assert refused(world, command(), by=everywhere)[0] is Forbidden
    assert refused(world, command(), by=ANYBODY) == (QueueError, "queue.tenant: say whose job it is: a, b")
    assert refused(world, command(**queue(tenant="aa")), by=ANYBODY)[0] is UnknownTenant
    assert [job.tenant for job in world.admit(command(**queue(tenant="b")), by=ANYBODY)] == ["b"]
    world.store.put_tenant(Tenant("default"), START_S)
    assert [job.tenant for job in world.admit(command(), by=ANYBODY)] == ["default"]


def test_all_mistakes_of_all_specs_are_told_at_once(world: ServiceWorld) -> None:
    bad = [command(priority=1), {"kind": "comand"}, command(name="Bad Name"), command(**queue(priority=5000)), {}]
    kind, text = refused(world, *bad, command())
    assert kind is SpecError
    assert [line.split(": ")[0] for line in text.splitlines()][:4] == ["spec 1", "spec 2", "spec 3", "spec 4"]
    assert "spec 6" not in text
    assert world.store.jobs() == []


def test_no_more_than_twenty_mistakes_are_told(world: ServiceWorld) -> None:
    _, text = refused(world, *[command(nonsense=1)] * 1000)
    assert len(text.splitlines()) == 21
    assert text.endswith("the 980 specs after that were not looked at")


@pytest.mark.parametrize(
    "value",
    [
        {"version": 7, "kind": "of-the-future"},
        {"version": 1.5, **command()},
        {"version": 10**400, **command()},
    ],
)
def test_a_spec_from_the_future_is_refused_by_its_version(world: ServiceWorld, value: Any) -> None:
    kind, text = refused(world, value)
    assert kind is SpecError
    assert f"written for schema version {str(value['version'])[:40]}; this server reads 1: upgrade it" in text


DEEP: Any = "x"
for _ in range(5000):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    "value",
    [
        {"kind": ["command"]}, {"kind": {"a": 1}}, {"kind": None}, {"version": "1"}, {"version": None, **command()},
        {"name": 5, **command()}, command(name="\ud800"), command(command=["\udfff"]), command(command=["\0"]),
        command(env={"A": "\0"}), command(env={"A B": "x"}), command(queue=None, resources=[]), command(queue=[1]),
        command(queue={"after": "x"}), command(queue={"after": [5]}), command(resources={"num_workers": 10**30}),
        command(resources={"num_workers": 1e400}), command(queue={"max_runtime_s": float("nan")}),
        command(command=DEEP), {"model": DEEP, "data": DEEP},
        finetune(data=[]), finetune(model="run:"), finetune(model="run:../x"),
    ],
)  # fmt: skip
def test_whatever_is_sent_is_answered_with_a_mistake_of_ours(world: ServiceWorld, value: Any) -> None:
    with contextlib.suppress(FleetuneError):
        admit(world.context, [value], ANNA)


def test_a_gang_that_could_never_start_is_refused(world: ServiceWorld) -> None:
    kind, text = refused(world, command(resources={"num_workers": 9, "gpus_per_worker": 1}))
    assert kind is CapacityError
    assert "resources.num_workers: 8" in text
    world.store.put_tenant(Tenant("a", limit=((None, 2),)), START_S)
    kind, text = refused(world, command(resources={"num_workers": 3, "gpus_per_worker": 1}))
    assert kind is CapacityError
    assert "tenant 'a' may hold at most 2 GPUs" in text


def test_machines_that_do_not_answer_are_taken_at_their_best(world: ServiceWorld) -> None:
    with world.backend.unreachable():
        assert len(world.admit(command(resources={"num_workers": 900, "gpus_per_worker": 1}))) == 1


def test_nodes_that_are_cordoned_count_as_capacity(world: ServiceWorld) -> None:
    world.backend.change_node("n0", usable=False)
    assert len(world.admit(command(resources={"num_workers": 8, "gpus_per_worker": 1}))) == 1


def test_nodes_that_have_only_just_gone_count_as_capacity(world: ServiceWorld) -> None:
    """Nobody's jobs are refused because a machine is away for some minutes."""
    world.context.machines.inventory()
    world.backend.lose_node("n0")
    world.context.machines._until_s = 0.0  # it is looked again
    assert len(world.context.machines.inventory().nodes) == 1
    assert len(world.admit(command(resources={"num_workers": 8, "gpus_per_worker": 1}))) == 1
    kind, _ = refused(world, command(resources={"num_workers": 9, "gpus_per_worker": 1}))
    assert kind is CapacityError


def test_parents_are_named_by_their_ids_or_the_starts_of_these(world: ServiceWorld) -> None:
    first, second = world.admit(command("first"), command("second"))
    (job,) = world.admit(command(**queue(after=["first", second.job_id, first.job_id, "second"])))
    assert job.after == (first.job_id, second.job_id)
    third = world.admit(command("second"))[0]
    kind, text = refused(world, command(**queue(after=["second"])))
    assert kind is QueueError
    assert "may mean several jobs" in text
    assert third.job_id in text


def test_parents_that_are_not_there_or_others_are_unknown_alike(world: ServiceWorld) -> None:
    (others,) = world.admit(command("theirs"), by=BERT)
    for reference in ("nothing", "theirs", others.job_id, ""):
        kind, text = refused(world, command(**queue(after=[reference])))
        assert (kind, text) == (
            UnknownJob,
            f"queue.after: there is no job {reference!r}: `fleetune queue` lists the ids",
        )


def test_nothing_comes_after_itself_or_a_job_without_an_id(world: ServiceWorld) -> None:
    kind, text = refused(world, command("one", **queue(after=["one"])))
    assert kind is QueueError
    assert "cannot come after itself" in text
    kind, text = refused(world, command("one", **queue(after=["two"])), command("two", **queue(after=["one"])))
    assert kind is UnknownJob
    assert "submit it first, and give its id" in text


def test_no_submission_can_make_a_circle(world: ServiceWorld) -> None:
    """Whatever is referred to was stored before, so numbers fall along every chain of parents."""
    names = ("x", "y", "z")
    known: list[str] = []
    for number, (name, back) in enumerate(itertools.product(names, range(3))):
        after = known[-1 - back :] if back < len(known) else []
        (job,) = world.admit(command(f"{name}{number}", **queue(after=after)))
        known.append(job.job_id)
    numbers = {job.job_id: job.number for job in world.store.jobs()}
    for job in world.store.jobs():
        assert all(numbers[parent] < job.number for parent in job.after)


@pytest.mark.parametrize(("end", "word"), [(State.FAILED, "has failed"), (State.CANCELLED, "was cancelled")])
def test_after_a_job_that_has_failed_nothing_is_let_in(world: ServiceWorld, end: State, word: str) -> None:
    (parent,) = world.admit(command("first"))
    go(world.store, parent, end, now_s=START_S)
    kind, text = refused(world, command(**queue(after=["first"])))
    assert (kind, text) == (
        ParentFailed,
        f"queue.after: {parent.job_id} {word}: retry it first (fleetune retry {parent.job_id})",
    )


def test_a_model_of_a_run_makes_its_job_a_parent_until_it_has_succeeded(world: ServiceWorld) -> None:
    (parent,) = world.admit(finetune())
    (job,) = world.admit(finetune("run:train-", name="more"))
    assert job.after == (parent.job_id,)
    assert json.loads(world.store.spec(job.job_id))["model"]["path"] == f"run:{parent.job_id}"
    go(world.store, parent, State.STARTING, State.RUNNING, State.SUCCEEDED, now_s=START_S)
    (job,) = world.admit(finetune(f"run:{parent.job_id}", name="more"))
    assert job.after == (parent.job_id,)  # so that it is not removed meanwhile
    assert refused(world, finetune(f"run:{parent.job_id}", name="more"), by=BERT)[0] is UnknownJob
    kind, text = refused(world, finetune(f"run:{parent.job_id}", name="more", **queue(tenant="b")), by=ANYBODY)
    assert kind is Forbidden
    assert "is of tenant 'a', and its model is not for jobs of 'b'" in text
    (found,) = world.admit(sweep({**sweep()["base"], "model": {"path": f"run:{parent.job_id}", "task": "causal-lm"}}))
    assert found.after == (parent.job_id,)
    (other,) = world.admit(command("eval"))
    assert "only kind finetune exports a model" in refused(world, finetune(f"run:{other.job_id}"))[1]


def test_secrets_must_be_known_to_the_server(world: ServiceWorld) -> None:
    assert len(world.admit(command(**queue(secrets=["TOKEN"])))) == 1
    world.store.put_tenant(Tenant("a", restrictions=Restrictions(secrets=("TOKEN", "OTHER"))), START_S)
    kind, text = refused(world, command(**queue(secrets=["TOKEN", "OTHER"])))
    assert kind is QueueError
    assert "FLEETUNE_SECRET_OTHER in its environment" in text
    assert "hidden" not in text


@pytest.mark.parametrize("caller", [ANNA, ANYBODY])
def test_a_job_gets_only_secrets_that_its_tenant_was_given(world: ServiceWorld, caller: Caller) -> None:
    world.store.put_tenant(Tenant("a", restrictions=Restrictions(secrets=("OTHER",))), START_S)
    kind, text = refused(world, command(**queue(tenant="a", secrets=["TOKEN"])), by=caller)
    assert kind is QueueError
    assert text.endswith("was not given TOKEN. An admin gives it: fleetune tenants set a --secret OTHER --secret TOKEN")


def test_on_one_machine_paths_must_be_there(world: ServiceWorld, tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text("{}")
    runs = str(tmp_path / "not" / "yet" / "there")
    fine = finetune(str(tmp_path), str(tmp_path / "data.jsonl"), storage_path=runs, working_dir=str(tmp_path))
    assert len(world.admit(fine, finetune(data=str(tmp_path / "*.jsonl")))) == 2
    gone = str(tmp_path / "gone")
    kind, text = refused(
        world, finetune(gone, [gone, str(tmp_path)], storage_path=str(tmp_path / "data.jsonl" / "x"), working_dir=gone)
    )
    assert kind is NotReadable
    assert text.splitlines() == [
        f"working_dir: {gone} is no folder, or cannot be read",
        f"storage_path: {tmp_path}/data.jsonl/x cannot be written to: give a directory, or the path of one that can be "
        "made",
        f"model.path: {gone} is not there, or cannot be read",
        f"data.train[0]: {gone} is not there, or cannot be read",
    ]


def test_on_other_machines_only_shared_folders_and_urls_are_read(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    world = ServiceWorld(8, one_machine=False, shared=(str(shared), "/not/seen/here"))
    assert len(world.admit(finetune("/not/seen/here/model", storage_path=str(shared / "runs")))) == 1
    (tmp_path / "data.jsonl").write_text("{}")
    kind, text = refused(world, finetune(data=str(tmp_path / "data.jsonl")))
    assert kind is NotReadable
    assert text.startswith(f"data.train: {tmp_path}/data.jsonl is a path of one machine, and the workers run on others")
    assert f"`fleetune upload {tmp_path}/data.jsonl s3://BUCKET/FOLDER`" in text
    assert f"begin with {shared} or /not/seen/here" in text
    assert "is not there" in refused(world, finetune(data=str(shared / "gone.jsonl")))[1]
    for outside in (f"{shared}/../data.jsonl", f"{shared}x/data.jsonl", f"file://{tmp_path}/data.jsonl", "data.jsonl"):
        assert refused(world, finetune(data=outside))[0] is NotReadable
    assert refused(world, command(working_dir="/home"))[0] is NotReadable
    assert refused(world, command(working_dir="s3://bucket/x"))[0] is NotReadable
    assert refused(world, finetune(storage_path="runs"))[0] is NotReadable
    world.close()


@pytest.mark.parametrize(("engine", "roots"), [("ray", False), ("ray", True), ("local", False), ("local", True)])
def test_a_folder_that_only_the_user_of_ray_may_write_is_refused_without_ray(
    engine: str, roots: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode, **_: not mode & os.W_OK)  # mode bits do not bind root
    world = ServiceWorld(8, engine=engine, shared=(str(tmp_path),))
    world.store.put_tenant(Tenant("a", restrictions=Restrictions(roots=(str(tmp_path),) if roots else None)), START_S)
    spec = finetune(storage_path=str(tmp_path / "runs"), data=str(tmp_path))
    assert len(world.admit(spec)) == 1 if engine == "ray" else "cannot be written" in refused(world, spec)[1]
    world.close()


@pytest.mark.parametrize("field", ["storage_path", "model", "data"])
@pytest.mark.parametrize("protocol", sorted({*fsspec.available_protocols(), "HTTP", "S3"} - set(PROTOCOLS)))
def test_a_protocol_that_is_not_allowed_is_refused(world: ServiceWorld, field: str, protocol: str) -> None:
    for url in (f"{protocol}://host/x", f"{protocol}::file:///etc/passwd", f"simplecache::{protocol}://host/x"):
        kind, text = refused(world, finetune(**{field: url}), by=ANYBODY if field == "model" else ANNA)
        assert kind in (NotReadable, SpecError, QueueError), text
        assert world.store.jobs() == []


def test_an_administrator_s_protocols_are_let_in() -> None:
    world = ServiceWorld(4, protocols=frozenset({"sftp"}))
    assert len(world.admit(finetune(data="sftp://host/x.jsonl"))) == 1
    assert "webdav:// is not allowed. Allowed are paths and" in refused(world, finetune(data="webdav://host/x"))[1]
    world.close()


def test_a_tenant_with_roots_names_nothing_outside_of_them(world: ServiceWorld, tmp_path: Path) -> None:
    own = tmp_path / "a"
    own.mkdir()
    (own / "data.jsonl").write_text("{}")
    (tmp_path / "secret").write_text("{}")
    (own / "link").symlink_to(tmp_path)
    roots = Restrictions(roots=(str(own), "s3://bucket/a"))
    world.store.put_tenant(Tenant("a", restrictions=roots), START_S)
    fine = {"data": str(own / "*.jsonl"), "storage_path": "s3://bucket/a/runs"}
    assert len(world.admit(finetune(**fine), finetune(**{**fine, "storage_path": str(own / "runs")}))) == 2
    for wrong in (
        {"data": str(tmp_path / "secret")}, {"data": str(tmp_path / "missing")}, {"data": f"{own}/../secret"},
        {"data": "s3://other/x"}, {"model": "s3://bucket/ab/model"}, {"model": "/models/m"},
        {"storage_path": "s3://bucket/runs"}, {"storage_path": f"{own}x"},
        {"eval": {"lm_eval": {"tasks": [f"{tmp_path}/task.yaml"]}}},
    ):  # fmt: skip
        asked: dict[str, Any] = {**fine, **wrong, **queue(tenant="a")}
        for caller in (ANNA, ANYBODY):
            kind, text = refused(world, finetune(**asked), by=caller)
            assert kind is Forbidden
            assert f"Give a path or URL under {own}, s3://bucket/a" in text
    # Behind a link the server does not look, so the answer is the same whether the file of somebody else is there.
    assert (
        len(world.admit(*(finetune(**{**fine, "data": f"{own}/link/{name}"}) for name in ("secret", "missing")))) == 2
    )
    assert "is not there, or cannot be read" in refused(world, finetune(**{**fine, "data": f"{own}/missing"}))[1]
    assert len(world.admit(command(working_dir=str(tmp_path)))) == 1


def test_the_model_of_a_run_outside_of_the_roots_is_refused(world: ServiceWorld) -> None:
    (parent,) = world.admit(finetune())
    world.store.put_tenant(Tenant("a", restrictions=Restrictions(roots=("s3://bucket/a",))), START_S)
    spec = finetune(f"run:{parent.job_id}", "s3://bucket/a/x", storage_path="s3://bucket/a")
    kind, text = refused(world, spec)
    assert kind is Forbidden
    assert text.startswith("model.path: tenant 'a' may not use s3://bucket/runs")


def test_a_missing_file_and_one_that_cannot_be_read_get_the_same_answer(world: ServiceWorld, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.write_text("{}")
    closed.chmod(0)
    if os.access(closed, os.R_OK):
        pytest.skip("this user may read every file")
    said = {refused(world, finetune(data=str(path)))[1].replace(path.name, "X") for path in (closed, tmp_path / "none")}
    assert said == {f"data.train: {tmp_path}/X is not there, or cannot be read"}


def test_a_glob_over_a_whole_disk_is_not_walked_through(world: ServiceWorld) -> None:
    assert len(world.admit(finetune(data="/**/**/**/**/*.nothing"))) == 1


def test_a_clients_name_is_kept_and_can_be_no_path(world: ServiceWorld) -> None:
    assert world.admit(command(), client="12-ab")[0].client == "12-ab"
    for wrong in ("../x", "ray:raysubmit_1", ""):  # with "ray:" begins what only guests are
        with pytest.raises(QueueError, match="client: a client's name has letters"):
            check_client(wrong)
