"""A run may go on with another machine under it, and with nothing else; and only if nobody else drives it."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import InputError, SpecError
from jobs.drivers.finetune.begin import begin_run, load_job
from jobs.run.checkpoints import commit_path
from jobs.run.events import ALIVE, Announcer, Watch, this_driver
from jobs.run.outcome import Outcome, Status, event, write_outcome
from jobs.run.paths import JobPaths
from jobs.run.progress import NoProgress
from jobs.run.record import concluded, ending_of, last_record, open_run, read_steps, reopen_run
from jobs.run.resume import MAY_CHANGE, MAY_MOVE, SILENT_S, check_resumable, differences, leaf_fields, may_change
from jobs.spec.finetune import Spec
from jobs.spec.load import dump_spec, load_spec
from jobs.storage import files as storage
from jobs.storage.journal import JournalWriter, read_journal

# What is computed. Whoever adds a field to the spec decides here: it is refused unless `jobs.run.resume` lists it.
REFUSED = {
    "version", "kind", "seed", "method.kind", "lora.rank", "lora.alpha", "lora.dropout",
    "lora.target_modules", "prompt.num_virtual_tokens", "prompt.init_text",
    "model.task", "model.num_labels", "model.attn_implementation", "model.chat_template",
    "data.eval_fraction", "data.format", "data.columns.text", "data.columns.label", "data.columns.messages",
    "data.columns.prompt", "data.columns.completion", "data.columns.instruction", "data.columns.input",
    "data.columns.output", "data.loss_on", "data.labels", "data.seq_len", "data.packing",
    "train.learning_rate", "train.lr_scheduler_type",
    "train.warmup_ratio", "train.warmup_steps", "train.decay_ratio", "train.num_train_epochs", "train.max_steps",
    "train.optim", "train.weight_decay", "train.adam_beta1", "train.adam_beta2", "train.adam_epsilon",
    "train.max_grad_norm", "train.bf16", "train.fp16", "train.group_by_length",
    "eval.lm_eval.tasks", "eval.lm_eval.limit", "eval.lm_eval.num_fewshot", "eval.lm_eval.apply_chat_template",
}  # fmt: skip


def changed(spec: Spec, **fields: Any) -> Spec:
    """The spec with fields set by their dotted names, with `__` for the dots."""
    raw = spec.model_dump()
    for name, value in fields.items():
        *sections, last = name.split("__")
        inner = raw
        for section in sections:
            inner = inner[section]
        inner[last] = value
    return Spec.model_validate(raw)


@pytest.fixture
def spec(tmp_path: Path) -> Spec:
    model = tmp_path / "m"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llama"}')
    (model / "tokenizer.json").touch()
    (model / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")  # whole, though it holds no tensor
    (tmp_path / "d.jsonl").write_text('{"text": "some row"}\n')
    return Spec.model_validate(
        {
            "model": {"path": str(model), "task": "causal-lm"},
            "data": {"train": str(tmp_path / "d.jsonl"), "format": "text"},
            "train": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
            "resources": {"num_workers": 2},
            "storage_path": str(tmp_path / "runs"),
        }
    )


@pytest.fixture
def paths(spec: Spec) -> JobPaths:
    return open_run(spec)


def end(paths: JobPaths, status: Status, **more: Any) -> None:
    write_outcome(paths, Outcome(status=status, ended_at=datetime.datetime.now(datetime.UTC), **more))


def put_events(paths: JobPaths, *records: dict[str, Any], writer: str = "driver", at_s: float | None = None) -> None:
    """`at_s`: seconds since 1970; None: now."""
    part = f"{int((time.time() if at_s is None else at_s) * 1e9):020d}-{writer}.jsonl"
    storage.write_bytes(storage.join(paths.events, part), "\n".join(map(json.dumps, records)).encode())


def sign_of_life(**driver: Any) -> dict[str, Any]:
    return event(ALIVE, "the driver is alive", **{**this_driver(), **driver}).model_dump(mode="json")


def test_every_field_is_refused_unless_it_is_listed() -> None:
    assert {name for name in leaf_fields() if not may_change(name) and name not in MAY_MOVE} == REFUSED
    for name in MAY_CHANGE | MAY_MOVE:
        assert any(field == name or field.startswith(f"{name}.") for field in leaf_fields()), name


def test_the_machine_may_be_another_one_as_long_as_a_step_has_as_many_rows(spec: Spec) -> None:
    now = changed(
        spec,
        name="other",
        storage_path="/elsewhere",
        model__path="/moved/m",
        data__train="/moved/d.jsonl",
        train__per_device_train_batch_size=4,
        train__gradient_accumulation_steps=None,
        train__global_batch_tokens=8 * spec.data.seq_len,
        train__gradient_checkpointing=True,
        train__zero={"stage": 1},
        eval__eval_on_start=False,
        checkpoint__save_steps=7,
        resources={"num_workers": 3, "gpus_per_worker": 0},
    )
    assert differences(spec, now) == []


def test_differences_are_lines_with_both_values(spec: Spec) -> None:
    now = changed(spec, train__learning_rate=1e-5, train__fp16=True, data__eval="/e.jsonl", eval__metrics=["accuracy"])
    assert differences(spec, now) == [
        "data.eval: null -> /e.jsonl",
        "train.learning_rate: 2e-05 -> 1e-05",
        "train.fp16: false -> true",
    ]


def test_general_text_may_move_but_be_neither_added_nor_dropped(spec: Spec) -> None:
    """Its loss with the base model was measured at the start of the run."""
    general = changed(spec, eval__general="/g.jsonl")
    assert differences(general, changed(spec, eval__general="/moved/g.jsonl", eval__eval_steps=3)) == []
    assert differences(spec, general) == ["eval.general: null -> /g.jsonl (format text)"]
    assert differences(general, spec) == ["eval.general: /g.jsonl (format text) -> null"]


def test_a_kernel_that_was_left_out_is_the_default_one(spec: Spec) -> None:
    """Earlier releases wrote sdpa into the spec of each run."""
    sdpa, eager = (changed(spec, model__attn_implementation=kernel) for kernel in ("sdpa", "eager"))
    assert differences(sdpa, spec) == differences(spec, sdpa) == []
    assert differences(sdpa, eager) == differences(spec, eager) == ["model.attn_implementation: sdpa -> eager"]


def test_a_template_that_differs_is_told_by_its_beginning(spec: Spec) -> None:
    template = "{% for m in messages %}\n" + "x" * 1000
    assert differences(spec, changed(spec, model__chat_template=template)) == [
        "model.chat_template: null -> {% for m in messages %}... (1,024 characters)"
    ]


def test_a_precision_that_the_device_chose_may_be_said_but_not_changed(spec: Spec) -> None:
    said = changed(spec, train__bf16=True)
    assert differences(spec, said) == []
    assert differences(said, changed(spec, train__bf16=False)) == ["train.bf16: true -> false"]
    assert differences(said, spec) == ["train.bf16: true -> null"]


def test_another_global_batch_is_refused_with_what_to_set(spec: Spec) -> None:
    assert differences(spec, changed(spec, resources__num_workers=3)) == [
        "rows per optimizer step: 8 -> 12; set train.global_batch_size: 8, train.gradient_accumulation_steps: null"
    ]
    now = changed(spec, resources__num_workers=3, train__gradient_accumulation_steps=None, train__global_batch_size=8)
    assert differences(spec, now) == []


def test_a_run_that_was_interrupted_or_failed_may_go_on(spec: Spec, paths: JobPaths) -> None:
    for status in (Status.INTERRUPTED, Status.FAILED):
        end(paths, status, reason="because")
        assert check_resumable(paths, changed(spec, resources__num_workers=2)) == spec


def test_what_differs_is_told_whole_with_what_to_do(spec: Spec, paths: JobPaths) -> None:
    end(paths, Status.INTERRUPTED)
    with pytest.raises(SpecError) as caught:
        check_resumable(paths, changed(spec, seed=1, train__max_steps=9))
    for part in ("\n  seed: 42 -> 1\n", "\n  train.max_steps: null -> 9\n", "Undo the listed", f"{paths.root}/model"):
        assert part in str(caught.value)


def test_what_is_no_run_and_what_has_succeeded_are_refused(spec: Spec, paths: JobPaths, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not a run: there is no spec\.json"):
        check_resumable(JobPaths(str(tmp_path)), spec)
    end(paths, Status.SUCCEEDED, step=9)
    with pytest.raises(InputError, match=f"after 9 steps: nothing is left to do.*model.path: {paths.model}"):
        check_resumable(paths, spec)


@pytest.mark.parametrize(
    ("method", "advice"),
    [
        ("full", "(`fleetune export {root}`, then model.path: {root}/model)"),
        ("lora", "(`fleetune export {root} --merged`, then model.path: {root}/merged)"),
        ("prompt", "start a new run from the base model: a prompt cannot be merged into it"),
    ],
)
def test_how_to_train_further_depends_on_what_was_trained(spec: Spec, method: str, advice: str) -> None:
    paths = open_run(changed(spec, method__kind=method))
    end(paths, Status.INTERRUPTED)
    with pytest.raises(SpecError, match=re.escape(advice.format(root=paths.root))):
        check_resumable(paths, changed(spec, seed=1))
    end(paths, Status.SUCCEEDED)
    with pytest.raises(InputError, match=re.escape(advice.format(root=paths.root))):
        check_resumable(paths, spec)


def test_a_run_that_a_process_of_this_host_drives_is_refused_while_it_lives(spec: Spec, paths: JobPaths) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as driver:
        put_events(paths, sign_of_life(pid=driver.pid))
        put_events(paths, {"kind": "checkpoint"}, writer="rank-0")
        with pytest.raises(InputError, match=f"process {driver.pid} of this host .*fleetune stop {paths.root}"):
            check_resumable(paths, spec)
        driver.kill()
        os.waitid(os.P_PID, driver.pid, os.WEXITED | os.WNOWAIT)  # ended, but nobody has taken notice
        assert check_resumable(paths, spec) == spec


@pytest.mark.parametrize("elsewhere", [{"host": "other"}, {"machine": "a container with this host's name"}])
def test_a_run_that_was_driven_elsewhere_may_go_on_when_it_has_been_silent(
    spec: Spec, paths: JobPaths, elsewhere: dict[str, str]
) -> None:
    now_s = time.time()
    put_events(paths, sign_of_life(pid=7, **elsewhere), at_s=now_s - 20)
    with pytest.raises(InputError, match=r"process 7 on host .* wrote 20 s ago.* may go on in 130 s"):
        check_resumable(paths, spec, lambda: now_s)
    assert check_resumable(paths, spec, lambda: now_s + SILENT_S) == spec
    with pytest.raises(InputError, match=r"wrote 40 s from now, because the clock of its host is ahead .* in 190 s"):
        check_resumable(paths, spec, lambda: now_s - 60)


def test_a_run_that_has_an_outcome_may_go_on_at_once(spec: Spec, paths: JobPaths) -> None:
    put_events(paths, sign_of_life(host="other"))
    end(paths, Status.INTERRUPTED)
    assert check_resumable(paths, spec) == spec


def test_fresh_events_of_nobody_known_are_a_reason_to_wait(spec: Spec, paths: JobPaths) -> None:
    put_events(paths, {"kind": "phase"}, writer="rank-0")
    with pytest.raises(InputError, match="did not say where it is"):
        check_resumable(paths, spec)


def test_the_driver_says_who_it_is_before_anything_else(spec: Spec, paths: JobPaths) -> None:
    announce = Announcer(paths, NoProgress())
    announce.close()
    assert read_journal(paths.events)[0]["data"] == this_driver()
    with pytest.raises(InputError, match=f"process {os.getpid()} of this host"):
        check_resumable(paths, spec)


def test_reopened_run_keeps_what_was_and_is_rid_of_what_would_stop_it(spec: Spec, paths: JobPaths) -> None:
    storage.write_bytes(paths.manifest, b'{"host": "first"}')
    for _ in range(2):
        end(paths, Status.INTERRUPTED, reason="Ctrl-C")
        for asked in (paths.stop_request, paths.save_request, paths.failure(1)):
            storage.write_bytes(asked, b"")
        spec = changed(spec, name=f"{spec.name}-again")
        assert reopen_run(paths.root, spec) == paths
    assert load_spec(paths.spec).name == "run-again-again"
    assert [load_spec(paths.earlier("spec", number)).name for number in (1, 2)] == ["run", "run-again"]
    assert json.loads(storage.read_bytes(paths.earlier("outcome", 2)))["reason"] == "Ctrl-C"
    assert storage.list_names(paths.root) == [
        *("manifest-1.json", "manifest-2.json", "manifest.json", "outcome-1.json", "outcome-2.json"),
        *("spec-1.json", "spec-2.json", "spec.json"),
    ]


def test_killed_run_has_no_outcome_to_keep_and_the_numbers_stay_together(spec: Spec, paths: JobPaths) -> None:
    reopen_run(paths.root, spec)
    end(paths, Status.FAILED)
    reopen_run(paths.root, spec)
    assert [name for name in storage.list_names(paths.root) if name[0] in "os"] == [
        *("outcome-2.json", "spec-1.json", "spec-2.json", "spec.json"),
    ]


def test_steps_are_read_once_each_as_they_were_written_last(paths: JobPaths) -> None:
    for records in ([(1, 0.9), (2, 0.8), (3, 0.7)], [(2, 0.5)]):
        writer = JournalWriter(paths.metrics, "rank-0")
        for step, loss in records:
            writer.append({"step": step, "loss": loss, "eval_loss": 10 * loss})
        writer.close()
    assert [(record["step"], record["loss"]) for record in read_steps(paths)] == [(1, 0.9), (2, 0.5), (3, 0.7)]
    assert last_record(paths) == {
        "step": 2, "metrics": {"eval_loss": 5.0, "loss": 0.5}, "evaluated_step": 2, "metrics_before": {},
    }  # fmt: skip


def test_failed_run_tells_its_start_and_the_step_of_its_last_evaluation(paths: JobPaths) -> None:
    events, metrics = JournalWriter(paths.events, "rank-0"), JournalWriter(paths.metrics, "rank-0")
    events.append(event("evaluated", "", step=0, metrics={"eval_loss": 0.7}).model_dump(mode="json"))
    events.flush()
    assert last_record(paths) == {"metrics_before": {"eval_loss": 0.7}}
    metrics.append({"step": 1, "loss": 0.6})
    metrics.flush()
    assert last_record(paths) == {
        "step": 1, "metrics": {"loss": 0.6}, "evaluated_step": None, "metrics_before": {"eval_loss": 0.7},
    }  # fmt: skip
    for record in ({"step": 2, "loss": 0.5, "eval_loss": 0.55}, {"step": 3, "loss": 0.4}):
        metrics.append(record)
    events.close()
    metrics.close()
    known = last_record(paths)
    assert known["metrics"] == {"eval_loss": 0.55, "loss": 0.4} and known["evaluated_step"] == 2


def test_watch_passes_over_what_an_earlier_attempt_has_written(paths: JobPaths) -> None:
    seen: list[Any] = []

    class Seen(NoProgress):
        def step(self, record: dict[str, Any]) -> None:
            seen.append(record["step"])

    for step in (1, 2):
        writer = JournalWriter(paths.metrics, "rank-0")
        writer.append({"step": step})
        writer.close()
        if step == 1:
            watch = Watch(paths, Seen())
    watch.look()
    assert seen == [2]


def test_ending_says_how_to_go_on(paths: JobPaths) -> None:
    def stopped() -> Outcome:
        announce("remedy", "", remedy="hang", cause="rank 1 hung", action="it is killed", effect="")
        raise KeyboardInterrupt

    with contextlib.closing(Announcer(paths, NoProgress())) as announce:
        ending = ending_of(paths, concluded(paths, stopped, announce))
        resume = f"resume: fleetune run --resume {paths.root}"
        assert "interrupted: stopped on request" in ending.splitlines()
        assert ending.splitlines()[-1] == resume and "remedy: rank 1 hung: it is killed" in ending.splitlines()
        failed = concluded(paths, stopped, announce).model_copy(update={"status": Status.FAILED})
        assert "resume" not in ending_of(paths, failed)  # without a checkpoint, it would fail again
        storage.write_bytes(commit_path(paths, 5), b"{}")
        outcome = concluded(paths, stopped, announce)
    assert ending_of(paths, failed).splitlines()[-1] == ending_of(paths, outcome).splitlines()[-1] == resume
    for other in ({"status": Status.SUCCEEDED}, {"diverged": True}):
        assert "resume" not in ending_of(paths, outcome.model_copy(update=other))


def test_run_begins_anew_or_goes_on_in_its_directory(spec: Spec) -> None:
    first = begin_run(spec)
    end(first.paths, Status.INTERRUPTED)
    second = begin_run(spec, first.paths.root)
    assert (first.resumed, second.resumed, second.paths) == (False, True, first.paths)
    announce = Announcer(second.paths, NoProgress())
    second.tell(announce)
    announce.close()
    start = read_journal(second.paths.events)[1]
    assert start["message"] == f"going on with run {first.paths.name} in {first.paths.root}"
    assert start["data"] == {"phase": "start", "root": first.paths.root, "resumed": True}


def test_refused_run_is_left_as_it_is(spec: Spec, paths: JobPaths) -> None:
    end(paths, Status.INTERRUPTED)
    for wrong in (changed(spec, seed=1), changed(spec, data__train="/no/data.jsonl")):
        with pytest.raises(InputError):
            begin_run(wrong, paths.root)
    assert storage.list_names(paths.root) == ["outcome.json", "spec.json"]


def test_job_is_the_given_spec_or_the_run_s_own(
    spec: Spec, paths: JobPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "job.json").write_bytes(dump_spec(changed(spec, seed=7)))
    job, name = str(tmp_path / "job.json"), paths.name[:-2]
    assert load_job(job, ["seed=8"], None) == (changed(spec, seed=8), None)
    assert load_job(job, [], name) == (changed(spec, seed=7), paths.root)
    assert load_job(None, ["seed=9"], paths.root) == (changed(spec, seed=9), paths.root)
    monkeypatch.setenv("FLEETUNE_STORAGE_PATH", spec.storage_path)
    assert load_job(None, [], name) == (spec, paths.root)
    with pytest.raises(SpecError, match="--resume RUN"):
        load_job(None, [], None)


def test_a_trial_is_not_resumed_behind_the_ledger_of_its_sweep(spec: Spec, paths: JobPaths) -> None:
    trial = JobPaths.of(paths.root, "0001")
    storage.write_bytes(trial.spec, dump_spec(spec))
    storage.write_bytes(paths.spec, b'{"kind": "sweep"}')
    for given in (None, trial.spec):
        with pytest.raises(InputError, match=f"belongs to the sweep.*: fleetune run --resume {paths.root}$"):
            load_job(given, [], trial.root)


def test_run_that_is_not_there_is_answered_with_the_one_that_is(spec: Spec, paths: JobPaths) -> None:
    typo = paths.root.replace("run-", "rum-")
    for asked in (typo, typo.rpartition("/")[2]):
        with pytest.raises(InputError, match=f"did you mean {paths.name}"):
            load_job(paths.spec, [], asked)
