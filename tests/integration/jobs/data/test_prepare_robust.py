"""Prepare under adverse circumstances: killed, started twice at once, files that change, disks that are full."""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

from cluster.errors import DataError, StorageError, StorageOutage
from jobs.data.preparation.fingerprint import source_jobs
from jobs.data.preparation.prepare import prepare
from jobs.data.prepared import Prepared
from jobs.model_files.tokenizer import read_tokenizer
from jobs.spec.finetune import Spec
from jobs.spec.load import dump_spec
from tests.integration.jobs.data.test_prepare import model_dir, quiet, source_root  # noqa: F401 - a fixture
from tests.support.gangs import HOLDING, ROOT
from tests.support.processes import Talker, wait_for
from tests.support.textdata import text_spec, write_texts

FLEETUNE = pathlib.Path(sys.executable).with_name("fleetune")
ALL_PARTS = 15  # of `texts`
WAITS = "is preparing the same data: waiting for it"


def digests(root: str | pathlib.Path) -> dict[str, str]:
    files = [path for path in pathlib.Path(root).rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def started(spec: Spec, folder: pathlib.Path, name: str, **most: int) -> Talker:
    """`fleetune data prepare`; small data, so in its own process.

    Args:
        most: numbers of `parts` or `shards` with which it waits until it is released.
    """
    file = folder / f"{name}.json"
    file.write_bytes(dump_spec(spec))
    if most:
        hold_of(folder, name).write_text(json.dumps(most))
    own = {"PYTHONPATH": HOLDING, "FLEETUNE_TESTS_HOLD_DATA": str(hold_of(folder, name))}
    command = [str(FLEETUNE), "data", "prepare", str(file)]
    return Talker(command, folder / f"{name}.log", cwd=ROOT, env={**os.environ, **own})


def hold_of(folder: pathlib.Path, name: str) -> pathlib.Path:
    """The file whose removal releases it."""
    return folder / f"{name}.hold"


def written_at(prepared: pathlib.Path) -> dict[str, int]:
    """When each part was written. The parts of one that is done are removed, maybe while they are looked at."""
    found: dict[str, int] = {}
    with contextlib.suppress(FileNotFoundError):
        for path in prepared.glob("*/parts/*.parquet"):
            found[path.name] = path.stat().st_mtime_ns
    return found


def comes_to(process: Talker, condition: Callable[[], bool]) -> None:
    """Returns once that is so. It is held before its end."""
    talks = process.process
    wait_for(lambda: condition() or talks.poll() is not None, "it is so far, or has ended", 240.0)
    assert talks.poll() is None, process.output


def killed(process: Talker, condition: Callable[[], bool]) -> None:
    comes_to(process, condition)
    process.kill()


def ended(process: Talker) -> str:
    assert process.ends(240.0) == 0, process.output
    return process.output


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three files of 20,000 texts: five chunks each, and more rows than a shard holds where they are not packed."""
    folder = tmp_path_factory.mktemp("texts")
    for number in range(3):
        write_texts(folder / f"part-{number}.jsonl", 20_000, seed=number, words=4)
    return str(folder)


@pytest.fixture(scope="module")
def undisturbed(texts: str, model_dir: str, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, dict[str, str]]:  # noqa: F811
    """What the source's directory holds, packed and not packed."""
    found = {}
    for packing in (True, False):
        spec = text_spec(tmp_path_factory.mktemp("whole"), model_dir, texts, packing=packing, eval_fraction=0.05)
        prepared = prepare(spec, model_dir, engine="plain", say=quiet)
        found[packing] = digests(source_root(prepared, "train"))
    return found


@pytest.mark.slow
def test_killed_while_tokenising_and_started_again_makes_no_part_twice_and_gives_the_same_bytes(
    texts: str,
    model_dir: str,  # noqa: F811
    undisturbed: dict[bool, dict[str, str]],
    tmp_path: pathlib.Path,
) -> None:
    """Killed three times, each time further on."""
    spec = text_spec(tmp_path / "out", model_dir, texts, eval_fraction=0.05)
    parts = tmp_path / "out" / "prepared"
    kept: dict[str, int] = {}
    for least in (2, 6, 11):
        process = started(spec, tmp_path, f"killed-at-{least}", parts=least + 2)  # so that it is killed anywhere
        killed(process, lambda least=least: len(written_at(parts)) >= least)  # type: ignore[misc]
        assert not list(parts.glob("*/manifest.json"))
        found = written_at(parts)
        assert kept.items() <= found.items()
        kept = found
    process = started(spec, tmp_path, "last", parts=ALL_PARTS - 1)
    comes_to(process, lambda: len(written_at(parts)) == ALL_PARTS - 1)
    seen = written_at(parts)
    hold_of(tmp_path, "last").unlink()
    while process.process.poll() is None:
        seen |= written_at(parts)
        time.sleep(0.01)
    assert "going on with data.train" in ended(process) and len(kept) >= 11
    assert kept.items() <= seen.items()
    prepared = prepare(spec, model_dir, engine="plain", say=quiet)
    assert digests(source_root(prepared, "train")) == undisturbed[True]


@pytest.mark.slow
def test_killed_while_writing_shards_keeps_those_that_are_whole(
    texts: str,
    model_dir: str,  # noqa: F811
    undisturbed: dict[bool, dict[str, str]],
    tmp_path: pathlib.Path,
) -> None:
    spec = text_spec(tmp_path / "out", model_dir, texts, packing=False, eval_fraction=0.05)
    folder = tmp_path / "out" / "prepared"
    process = started(spec, tmp_path, "killed", shards=2)
    killed(process, lambda: bool(list(folder.glob("*/rows/shard-00000.json"))))
    (shard,) = folder.glob("*/rows/shard-00000.arrow")
    written = shard.stat().st_mtime_ns
    ended(started(spec, tmp_path, "last"))
    assert shard.stat().st_mtime_ns == written
    prepared = prepare(spec, model_dir, engine="plain", say=quiet)
    assert digests(source_root(prepared, "train")) == undisturbed[False]
    assert len([name for name in undisturbed[False] if name.endswith(".arrow")]) > 4


@pytest.mark.slow
def test_two_who_ask_at_once_prepare_once(texts: str, model_dir: str, tmp_path: pathlib.Path) -> None:  # noqa: F811
    spec = text_spec(tmp_path / "out", model_dir, texts)
    names = [f"job-{number}" for number in range(3)]
    processes = [started(spec, tmp_path, names[0], parts=1)]
    processes[0].says("tokenising data.train", 240.0)  # one that stands still as it takes the lock would take it, too
    processes += [started(spec, tmp_path, name, parts=1) for name in names[1:]]
    wait_for(lambda: sum(WAITS in process.output for process in processes) == 2, "two wait for the third", 240.0)
    for name in names:
        hold_of(tmp_path, name).unlink()
    said = [ended(process) for process in processes]
    assert sum("tokenising data.train" in one for one in said) == 1
    assert sum(WAITS in one for one in said) == 2
    assert not list(tmp_path.glob("out/prepared/*/preparing.json"))


@pytest.mark.slow
def test_one_who_waits_goes_on_for_one_who_is_killed(
    texts: str,
    model_dir: str,  # noqa: F811
    undisturbed: dict[bool, dict[str, str]],
    tmp_path: pathlib.Path,
) -> None:
    spec = text_spec(tmp_path / "out", model_dir, texts, eval_fraction=0.05)
    folder = tmp_path / "out" / "prepared"
    first = started(spec, tmp_path, "first", parts=7)
    comes_to(first, lambda: len(written_at(folder)) >= 2)
    second = started(spec, tmp_path, "second")
    second.says(WAITS, 240.0)
    killed(first, lambda: len(written_at(folder)) >= 5)
    assert "going on with data.train" in ended(second)
    prepared = prepare(spec, model_dir, engine="plain", say=quiet)
    assert digests(source_root(prepared, "train")) == undisturbed[True]


OWN = """
import os

def changes_the_file(row):
    with open(os.environ["CHANGED"], "a") as file:
        file.write('{"text": "one more"}\\n')
    return {"text": row["text"]}
"""


def test_a_file_that_changes_while_it_is_read_is_refused(
    model_dir: str,  # noqa: F811
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = write_texts(tmp_path / "t.jsonl", 5_000)  # two chunks: the function is run between reading them
    (tmp_path / "changing_format.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHANGED", path)
    spec = text_spec(tmp_path / "out", model_dir, path, format="changing_format:changes_the_file")
    with pytest.raises(
        DataError, match=r"t\.jsonl changed while it was read, so the records do not belong to one state"
    ):
        prepare(spec, model_dir, engine="plain", say=quiet)
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


class _Breaks(MemoryFile):  # type: ignore[misc]  # fsspec carries no types
    """A file of which only the first bytes can be read."""

    def readinto(self, buffer: Any) -> Any:
        if self.tell() > _Flaky.most:
            raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
        return super().readinto(buffer)

    def read(self, *given: Any) -> bytes:
        if self.tell() > _Flaky.most:
            raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
        return bytes(super().read(*given))


class _Flaky(MemoryFileSystem):  # type: ignore[misc]
    protocol = "dropping"
    most = 0

    def _open(self, path: str, mode: str = "rb", *given: Any, **named: Any) -> Any:
        return _Breaks(self, path, super()._open(path, mode, *given, **named).getvalue())


@pytest.mark.usefixtures("own_protocols")
def test_a_source_that_is_away_for_a_while_is_no_bad_input_and_what_is_read_is_kept(
    model_dir: str,  # noqa: F811
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fsspec.register_implementation("dropping", _Flaky, clobber=True)
    content = pathlib.Path(write_texts(tmp_path / "t.jsonl", 9_000)).read_bytes()  # three chunks
    _Flaky().pipe_file("dropping://bucket/t.jsonl", content)
    spec = text_spec(tmp_path / "out", model_dir, "dropping://bucket/t.jsonl")
    monkeypatch.setattr(_Flaky, "most", len(content))
    stamped = source_jobs(spec, read_tokenizer(model_dir))  # plain files in memory have no version: this reads them
    monkeypatch.setattr("jobs.data.preparation.prepare.source_jobs", lambda *given: stamped)
    monkeypatch.setattr(_Flaky, "most", len(content) * 2 // 3)
    with pytest.raises(StorageOutage, match=r"after line \d+, .*ConnectionReset.* Tokenised parts are kept"):
        prepare(spec, model_dir, engine="plain", say=quiet)
    assert len(list((tmp_path / "out").rglob("parts/*.parquet"))) == 1
    monkeypatch.setattr(_Flaky, "most", len(content))
    said: list[str] = []
    assert prepare(spec, model_dir, engine="plain", say=said.append).manifest.records == 9_000
    assert any("going on with data.train, with 4,096 samples" in line for line in said)


def full_disk(folder: pathlib.Path, megabytes: int) -> None:
    """A file system of so many megabytes at `folder`."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")


@pytest.mark.parametrize(
    ("scratch", "megabytes"), [(False, 2), (False, 6), (True, 6)], ids=["parts", "shards", "scratch"]
)
def test_a_full_disk_is_told_and_the_next_prepare_goes_on(
    texts: str,
    model_dir: str,  # noqa: F811
    undisturbed: dict[bool, dict[str, str]],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    scratch: bool,
    megabytes: int,
) -> None:
    disk = tmp_path / "disk"
    full_disk(disk, megabytes)
    try:
        if scratch:
            monkeypatch.setattr("tempfile.tempdir", str(disk))
        storage = tmp_path / "out" if scratch else disk / "out"
        spec = text_spec(storage, model_dir, texts, eval_fraction=0.05)
        with pytest.raises(StorageError, match="No space left on device") as caught:
            prepare(spec, model_dir, engine="plain", say=quiet)
        message = str(caught.value)
        assert "the next preparation uses them" in message and ("TMPDIR" in message) is scratch
        assert not list(storage.rglob("manifest.json"))
        assert list(storage.rglob("*.parquet"))
        subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
        said: list[str] = []
        prepared = prepare(spec, model_dir, engine="plain", say=said.append)
        assert any("going on with data.train" in line for line in said)
        assert digests(source_root(prepared, "train")) == undisturbed[True]
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_source_is_prepared_once_for_all_jobs_that_use_it(
    model_dir: str,  # noqa: F811
    tmp_path: pathlib.Path,
) -> None:
    one, two = (write_texts(tmp_path / f"{name}.jsonl", 500, seed) for seed, name in enumerate(("one", "two")))
    said: list[str] = []
    first = prepare(text_spec(tmp_path / "out", model_dir, one), model_dir, engine="plain", say=said.append)
    weighed: list[Any] = [{"path": one, "weight": 0.8}, {"path": two, "weight": 0.2, "max_epochs": 2}]
    second = prepare(text_spec(tmp_path / "out", model_dir, weighed), model_dir, engine="plain", say=said.append)
    done = [line.partition(":")[0] for line in said if line.startswith("tokenising")]
    assert done == ["tokenising data.train", "tokenising data.train[1]"]
    assert source_root(first, "train") == source_root(second, "train", 0)
    weighed[1]["weight"] = 0.4
    third = prepare(text_spec(tmp_path / "out", model_dir, weighed), model_dir, engine="plain", say=said.append)
    assert third.root == second.root
    held = prepare(text_spec(tmp_path / "out", model_dir, two, eval=one), model_dir, engine="plain", say=said.append)
    assert "data is prepared already" not in said[-1]
    assert len([line for line in said if line.startswith("tokenising")]) == 2
    assert held.split("eval").rows_of_sources == first.split("train").rows_of_sources


def test_rows_of_several_sources_are_told_apart(model_dir: str, tmp_path: pathlib.Path) -> None:  # noqa: F811
    import numpy as np

    paths = [write_texts(tmp_path / f"{seed}.jsonl", 300, seed) for seed in range(3)]
    spec = text_spec(tmp_path / "out", model_dir, paths)
    split = Prepared.open(prepare(spec, model_dir, engine="plain", say=quiet).root).split("train")
    rows = split.read_rows(np.arange(len(split))[::-1])
    ids = [sample for row in rows["sample_ids"].to_pylist() for sample in row]
    assert len(ids) == len(set(ids)) == 900
    assert sorted({sample >> 40 for sample in ids}) == [0, 1, 2]
    assert split.index.sample_ids.to_pylist() == rows["sample_ids"].to_pylist()[::-1]
    assert [len(row) for row in rows["input_ids"].to_pylist()] == split.index.num_tokens[::-1].tolist()
    assert json.dumps(split.rows_of_sources).count(",") == 2


def test_what_was_damaged_since_is_prepared_again(model_dir: str, tmp_path: pathlib.Path) -> None:  # noqa: F811
    spec = text_spec(tmp_path / "out", model_dir, write_texts(tmp_path / "t.jsonl", 300))
    root = source_root(prepare(spec, model_dir, engine="plain", say=quiet), "train")
    whole = digests(root)
    os.truncate(pathlib.Path(root) / "rows/shard-00000.arrow", 100)
    said: list[str] = []
    prepare(spec, model_dir, engine="plain", say=said.append)
    assert any("prepared data of data.train is damaged" in line for line in said)
    assert digests(root) == whole
    (pathlib.Path(root) / "manifest.json").write_text("{")
    with pytest.raises(DataError, match=r"manifest\.json is damaged: .*Remove .*, and prepare the data again"):
        prepare(spec, model_dir, engine="plain", say=quiet)


def test_bad_rows_at_the_head_of_a_file_do_not_stop_it_if_they_are_few_in_all(
    model_dir: str,  # noqa: F811
    tmp_path: pathlib.Path,
) -> None:
    path = write_texts(tmp_path / "t.jsonl", 30_000, words=4)
    whole = pathlib.Path(path).read_bytes()
    bad = b'{"text": "", "more": "as long as the others"}\n'
    pathlib.Path(path).write_bytes(bad * 1_200 + whole)
    spec = text_spec(tmp_path / "out", model_dir, path, max_bad_fraction=0.04)
    assert prepare(spec, model_dir, engine="plain", say=quiet).manifest.bad_rows == 1_200
    strict = text_spec(tmp_path / "out2", model_dir, path, max_bad_fraction=0.01)
    with pytest.raises(DataError, match=r"records .* of data\.train cannot be used"):
        prepare(strict, model_dir, engine="plain", say=quiet)
    # What is tokenised is kept: the next prepare may allow more.
    said: list[str] = []
    more = text_spec(tmp_path / "out2", model_dir, path, max_bad_fraction=0.04)
    prepare(more, model_dir, engine="plain", say=said.append)
    assert any("going on with data.train" in line for line in said)
