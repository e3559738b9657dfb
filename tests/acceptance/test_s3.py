"""Data, model, prepared rows, metrics, checkpoints and export on an object store (moto's server on loopback)."""

from __future__ import annotations

import contextlib
import gzip
import json
import pathlib
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
import xml.etree.ElementTree
from collections.abc import Iterator
from typing import Any

import pytest

from jobs.spec.load import load_spec
from tests.acceptance.conftest import FLEETUNE, environment, fleetune, started
from tests.support import tiny
from tests.support.gangs import ROOT, STOPPING
from tests.support.hold import Hold
from tests.support.processes import free_port, process_is_stopped, wait_for


@pytest.fixture(scope="module")
def store() -> Iterator[dict[str, str]]:
    """The variables with which the store is reached; it has a bucket named `lake`."""
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    env = {
        "AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_REGION": "us-east-1",
    }  # fmt: skip
    try:
        deadline = time.monotonic() + 240
        while True:
            try:
                urllib.request.urlopen(urllib.request.Request(f"{url}/lake", method="PUT"), timeout=5)
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.3)
        yield env
    finally:
        server.terminate()
        server.wait()


def upload(env: dict[str, str], source: pathlib.Path, target: str) -> None:
    _python(env, f"import fsspec; fsspec.filesystem('s3').put({str(source)!r}, {target!r}, recursive=True)")


def objects(env: dict[str, str], prefix: str) -> list[str]:
    """Names of the objects of `lake` that begin with `prefix`, asked of the store itself."""
    with urllib.request.urlopen(f"{env['AWS_ENDPOINT_URL']}/lake?list-type=2&prefix={prefix}", timeout=30) as answer:
        listed = xml.etree.ElementTree.parse(answer)
    assert listed.findtext("{*}IsTruncated") == "false"
    return sorted(str(key.text) for key in listed.iterfind("{*}Contents/{*}Key"))


def digests(env: dict[str, str], prefix: str) -> dict[str, str]:
    """What these objects hold, by what follows the prefix in their names."""
    code = (
        "import fsspec, hashlib, json; fs = fsspec.filesystem('s3')\n"
        f"found = {{name: hashlib.sha256(fs.cat_file(name)).hexdigest() for name in fs.find('lake/{prefix}')}}\n"
        "print(json.dumps(found))"
    )
    found = json.loads(_python(env, code))
    return {name.partition(prefix)[2]: digest for name, digest in found.items()}


def _python(env: dict[str, str], code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(**env), capture_output=True, text=True, timeout=300, check=True
    )
    return done.stdout


STEPS, HELD_AT = 24, 3  # held until it is interrupted


@pytest.mark.slow
def test_a_run_lives_wholly_on_an_object_store(
    store: dict[str, str], workshop: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """Model, data, checkpoints, metrics and export, by way of an interruption; the commands that look at a run read it
    there.
    """
    upload(store, workshop / "bert", "lake/models/bert")
    upload(store, workshop / "labelled.jsonl", "lake/data/labelled.jsonl")
    spec: dict[str, Any] = {
        "name": "lake",
        "model": {"path": "s3://lake/models/bert", "task": "sequence-classification", "num_labels": 3},
        "data": {"train": "s3://lake/data/*.jsonl", "format": "classification", "eval_fraction": 0.3, "seq_len": 64},
        "train": {"max_steps": STEPS, "global_batch_size": 8, "per_device_train_batch_size": 4},
        "eval": {"metrics": ["accuracy"]},
        "checkpoint": {"save_steps": 2, "save_total_limit": 1},
        "resources": {"num_workers": 2, "gpus_per_worker": 0},
        "storage_path": "s3://lake/runs",
    }
    file = tmp_path / "job.json"
    file.write_text(json.dumps(spec))
    store = {**store, "HOME": str(tmp_path)}  # nothing of another run lies in the cache of models
    hold = Hold(tmp_path)
    hold.at(HELD_AT)
    with started(file, **store, **hold.environment) as process:
        seen = ""
        assert process.stdout is not None
        for line in process.stdout:
            seen += line
            if "checkpoint of step 2:" in line:
                process.send_signal(signal.SIGINT)
                break
        seen += process.communicate(timeout=300)[0]
    assert process.returncode == 130, seen
    (command,) = {line.split("fleetune ", 1)[1] for line in seen.splitlines() if line.strip().startswith("resume: ")}
    done = fleetune(*shlex.split(command), "--set", "resources.num_workers=1", env=store)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "written by 2 workers" in done.stdout
    listed = json.loads(fleetune("runs", "--storage", "s3://lake/runs", "--json", env=store).stdout)
    assert [run["status"] for run in listed] == ["succeeded"]
    root = f"s3://lake/runs/{listed[0]['name']}"
    code = (
        "import json; from jobs.storage import files as storage; from jobs.storage.journal import read_journal\n"
        f"steps = [record['step'] for record in read_journal('{root}/metrics')]\n"
        f"names = [storage.list_names('{root}/' + name) for name in ('model', 'logs', 'checkpoints')]\n"
        "print(json.dumps([steps, *names]))"
    )
    steps, model, logs, checkpoints = json.loads(_python(store, code))
    assert steps == list(range(1, STEPS + 1))
    assert "model.safetensors" in model and "config.json" in model
    assert logs == ["driver.log", "rank-0.log", "rank-1.log"]
    assert [name for name in checkpoints if name.startswith("step-")] == [f"step-{STEPS:08d}"]
    shown = fleetune("show", root, env=store)
    assert shown.returncode == 0 and "succeeded" in shown.stdout
    exported = fleetune("export", root, "--to", tmp_path / "model", env=store)
    assert exported.returncode == 0, exported.stdout + exported.stderr
    assert (tmp_path / "model/model.safetensors").exists()
    assert load_spec(str(file)).storage_path == "s3://lake/runs"


@pytest.mark.slow
def test_an_unreadable_url_is_told_before_anything_starts(store: dict[str, str], workshop: pathlib.Path) -> None:
    spec = {
        "model": {"path": str(workshop / "llama"), "task": "causal-lm"},
        "data": {"train": "s3://no-such-bucket/text.jsonl", "format": "text", "seq_len": 64},
        "resources": {"gpus_per_worker": 0},
        "storage_path": str(workshop / "unused"),
    }
    file = workshop / "unreadable.json"
    file.write_text(json.dumps(spec))
    done = fleetune("validate", file, env=store)
    assert done.returncode == 2
    assert "s3://no-such-bucket/text.jsonl" in done.stderr and "Traceback" not in done.stderr


RECORDS_PER_FILE = 9000  # three chunks


def records(seed: int) -> bytes:
    texts = tiny.sentences(RECORDS_PER_FILE, seed, longest=12)
    return "".join(json.dumps({"text": f"{number} {text}"}) + "\n" for number, text in enumerate(texts)).encode()


@pytest.fixture(scope="module")
def sources(store: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A glob of two compressed files and a directory of two files in `lake`."""
    text = tmp_path_factory.mktemp("sources") / "text"
    (text / "folder" / "inner").mkdir(parents=True)
    for number in range(2):
        (text / f"a-{number}.jsonl.gz").write_bytes(gzip.compress(records(number), mtime=0))
    (text / "folder" / "b.jsonl").write_bytes(records(2))
    (text / "folder" / "inner" / "c.jsonl").write_bytes(records(3))
    (text / "folder" / "_hidden.jsonl").write_bytes(b"not to be read")
    upload(store, text, "lake/text")
    return ["s3://lake/text/a-*.jsonl.gz", "s3://lake/text/folder"]


def text_spec(file: pathlib.Path, workshop: pathlib.Path, sources: list[str], storage: str) -> pathlib.Path:
    spec = {
        "name": "prepared",
        "model": {"path": str(workshop / "llama"), "task": "causal-lm"},
        "data": {"train": sources, "format": "text", "seq_len": 64, "eval_fraction": 0.1},
        "resources": {"gpus_per_worker": 0},
        "storage_path": storage,
    }
    file.write_text(json.dumps(spec))
    return file


def prepared(env: dict[str, str], spec: pathlib.Path) -> dict[str, Any]:
    done = fleetune("data", "prepare", spec, "--json", env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


@pytest.fixture(scope="module")
def undisturbed(
    store: dict[str, str], workshop: pathlib.Path, sources: list[str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What `data prepare` says of an undisturbed one under s3://lake/calm."""
    file = tmp_path_factory.mktemp("calm") / "job.json"
    return prepared(store, text_spec(file, workshop, sources, "s3://lake/calm"))


@contextlib.contextmanager
def preparing(env: dict[str, str], spec: pathlib.Path, prefix: str) -> Iterator[subprocess.Popen[str]]:
    """`fleetune data prepare` that has stopped itself with a part stored. Killed at the end of the context."""
    command = [str(FLEETUNE), "data", "prepare", str(spec), "--json"]
    own = environment(**env, PYTHONPATH=STOPPING)
    with subprocess.Popen(command, cwd=ROOT, env=own, stdout=subprocess.PIPE, text=True) as process:
        try:
            wait_for(lambda: process.poll() is not None or process_is_stopped(process.pid), "it has stopped", 240.0)
            assert any("/parts/" in name for name in objects(env, prefix))
            yield process
        finally:
            process.kill()


@pytest.mark.slow
def test_prepare_on_an_object_store_reads_globs_and_directories(
    store: dict[str, str], undisturbed: dict[str, Any]
) -> None:
    assert (undisturbed["records"], undisturbed["bad_rows"]) == (4 * RECORDS_PER_FILE, 0)
    assert undisturbed["train"]["samples"] + undisturbed["eval"]["samples"] == 4 * RECORDS_PER_FILE
    names = objects(store, "calm/")
    assert undisturbed["root"] == f"s3://lake/calm/prepared/{undisturbed['fingerprint']}"
    assert sum(name.endswith("/manifest.json") for name in names) == 3  # two sources, and what they are together
    assert not [name for name in names if "/parts/" in name or name.endswith("preparing.json")]


@pytest.mark.slow
def test_killed_prepare_goes_on_and_ends_as_an_undisturbed_one(
    store: dict[str, str],
    workshop: pathlib.Path,
    sources: list[str],
    undisturbed: dict[str, Any],
    tmp_path: pathlib.Path,
) -> None:
    """On an object store nothing is renamed, and no lock is taken as on a disk: all objects have the bytes of the
    undisturbed one.
    """
    spec = text_spec(tmp_path / "job.json", workshop, sources, "s3://lake/killed")
    with preparing(store, spec, "killed/") as process:
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert 1 <= len([name for name in objects(store, "killed/") if "/parts/" in name]) < 12
    assert not [name for name in objects(store, "killed/") if name.endswith("/manifest.json")]
    done = fleetune("data", "prepare", spec, env=store)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "going on with data.train[0], with " in done.stderr + done.stdout
    assert digests(store, "killed/") == digests(store, "calm/")
    again = prepared(store, spec)
    assert again | {"root": undisturbed["root"]} == undisturbed


@pytest.mark.slow
def test_prepare_that_stood_still_undoes_nothing_of_the_one_that_took_over(
    store: dict[str, str],
    workshop: pathlib.Path,
    sources: list[str],
    undisturbed: dict[str, Any],
    tmp_path: pathlib.Path,
) -> None:
    spec = text_spec(tmp_path / "job.json", workshop, sources, "s3://lake/stood")
    with preparing(store, spec, "stood/") as process:
        (lease,) = [name for name in objects(store, "stood/") if name.endswith("preparing.json")]
        _python(store, f"import fsspec; fsspec.filesystem('s3').rm('lake/{lease}')")  # as if nobody had it any more
        other = prepared(store, spec)
        assert other | {"root": undisturbed["root"]} == undisturbed
        process.send_signal(signal.SIGCONT)
        said = process.communicate(timeout=300)[0]
    assert process.returncode == 0 and json.loads(said) == other
    finished = {name: digest for name, digest in digests(store, "stood/").items() if "/parts/" not in name}
    assert finished == digests(store, "calm/")


@pytest.mark.slow
def test_changed_object_is_prepared_again_and_its_neighbours_are_not(
    store: dict[str, str],
    workshop: pathlib.Path,
    sources: list[str],
    undisturbed: dict[str, Any],
    tmp_path: pathlib.Path,
) -> None:
    spec = text_spec(tmp_path / "job.json", workshop, sources, "s3://lake/calm")
    before = digests(store, "calm/")
    whole, other = tmp_path / "whole.jsonl", tmp_path / "other.jsonl"
    whole.write_bytes(records(3))
    other.write_bytes(records(3).replace(b"0 ", b"9 ", 1))  # as long as before
    upload(store, other, "lake/text/folder/inner/c.jsonl")
    try:
        changed = prepared(store, spec)
    finally:
        upload(store, whole, "lake/text/folder/inner/c.jsonl")
    assert changed["fingerprint"] != undisturbed["fingerprint"] and changed["records"] == undisturbed["records"]
    after = digests(store, "calm/")
    assert before.items() <= after.items()
    assert sum(name.endswith("/manifest.json") for name in after) == 5  # the changed source, and what they are together
    assert prepared(store, spec) == undisturbed  # equal content has an equal ETag
