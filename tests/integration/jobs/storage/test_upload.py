"""`fleetune upload`: to a disk, to memory; whole, or not at all."""

from __future__ import annotations

import json
import os
import pathlib
import time
import uuid
from collections.abc import Iterator

import fsspec
import pytest
from typer.testing import CliRunner, Result

from cluster.errors import InputError, StorageError
from jobs.storage import files as storage
from jobs.storage.listing import listing
from jobs.storage.upload import plan_upload, upload
from orchestrator.cli.commands.upload import spec_field
from orchestrator.cli.commands.upload import upload as command
from orchestrator.cli.help_groups import command_group
from tests.support.cutstorage import Cut, changes

pytestmark = pytest.mark.usefixtures("own_protocols")

APP = command_group()
APP.command()(command)


@pytest.fixture(params=["local", "memory"])
def target(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[str]:
    """A place where nothing is yet."""
    if request.param == "local":
        yield str(tmp_path / "shared/models/llama")
        return
    name = uuid.uuid4().hex
    yield f"memory://{name}/models/llama"
    fs = fsspec.filesystem("memory")
    if fs.exists(f"/{name}"):
        fs.rm(f"/{name}", recursive=True)


@pytest.fixture
def model(tmp_path: pathlib.Path) -> pathlib.Path:
    """As in the hub's cache: links to files that lie elsewhere."""
    folder, blobs = tmp_path / "llama", tmp_path / "blobs"
    (folder / "inner").mkdir(parents=True)
    blobs.mkdir()
    (blobs / "1").write_bytes(os.urandom(3_000_000))
    (folder / "model.safetensors").symlink_to(blobs / "1")
    (folder / "config.json").write_text("{}")
    (folder / "inner/empty").write_text("")
    (folder / ".hidden").write_text("h")
    return folder


def contents(path: str) -> dict[str, bytes]:
    return {file.name: storage.read_bytes(storage.join(path, file.name)) for file in listing(path)}


def fleetune_upload(*arguments: object) -> Result:
    done = CliRunner().invoke(APP, [str(one) for one in arguments])
    assert "unexpected" not in done.output, done.output
    return done


def test_a_directory_arrives_as_it_is_and_what_to_write_is_said(model: pathlib.Path, target: str) -> None:
    done = fleetune_upload(model, target)
    assert done.exit_code == 0, done.output
    assert f"in the spec:  model.path: {target}" in done.output
    assert contents(target) == contents_of_local(model)


@pytest.mark.parametrize(("name", "field"), [("a.jsonl.gz", "data.train"), ("A.CSV", "data.train"), ("a.zst", None)])
def test_the_field_is_named_only_if_it_takes_such_a_file(name: str, field: str | None) -> None:
    assert spec_field(name) == field


def contents_of_local(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_file_arrives_at_its_place_or_under_it(tmp_path: pathlib.Path, target: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "a"}\n')
    assert f"data.train: {target}" in fleetune_upload(file, target).output
    assert storage.read_bytes(target) == file.read_bytes()
    assert fleetune_upload(file, target + "-more/").exit_code == 0
    assert storage.read_bytes(target + "-more/rows.jsonl") == file.read_bytes()


def test_the_same_again_sends_nothing(model: pathlib.Path, target: str) -> None:
    assert fleetune_upload(model, target).exit_code == 0
    told = json.loads(fleetune_upload(model, target, "--json").output)
    assert (told["sent"], told["files"], told["bytes"], told["field"]) == (0, 4, 0, "model.path")


def test_another_one_at_its_place_stays_unless_it_is_to_be_replaced(model: pathlib.Path, target: str) -> None:
    assert fleetune_upload(model, target).exit_code == 0
    before = contents(target)
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").write_bytes(bytes(3_000_000))  # of equal size
    refused = fleetune_upload(model, target)
    assert refused.exit_code == 2 and "model.safetensors" in refused.output and "--replace" in refused.output
    assert contents(target) == before
    assert fleetune_upload(model, target, "--replace").exit_code == 0
    assert contents(target) == contents_of_local(model)
    assert len(storage.list_names(target.rpartition("/")[0])) == 1  # nothing of before lies beside it


@pytest.mark.parametrize("more", [[], ["--replace"]])
def test_what_would_mix_with_other_files_is_refused(model: pathlib.Path, target: str, more: list[str]) -> None:
    storage.write_bytes(storage.join(target, "mine.txt"), b"mine")
    done = fleetune_upload(model, target, *more)
    assert done.exit_code == 2 and "mine.txt" in done.output and contents(target) == {"mine.txt": b"mine"}


def test_a_file_where_a_directory_is_to_be_and_the_other_way_round(model: pathlib.Path, target: str) -> None:
    storage.write_bytes(target, b"file")
    assert fleetune_upload(model, target).exit_code == 2
    assert fleetune_upload(model / "config.json", target.rpartition("/")[0]).exit_code == 2
    assert storage.read_bytes(target) == b"file"


def test_what_was_cut_off_goes_on_and_config_json_comes_last(model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    place = str(tmp_path / "store/llama")
    for allowed in range(20):
        with changes(allowed):
            try:
                upload(plan_upload(str(model), f"cut://{place}"))
                break
            except Cut:
                assert "config.json" not in contents(place)
    assert allowed == 3  # 0, 1 and 2 files were sent by those before, and the last one here
    assert contents(place) == contents_of_local(model)


def test_a_disk_shows_whole_files_only_and_no_model_before_all_is_there(
    model: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    place = tmp_path / "store/llama"
    plan = plan_upload(str(model), str(place))
    content = (tmp_path / "blobs/1").read_bytes()
    (tmp_path / "blobs/1").unlink()
    with pytest.raises(StorageError, match="cannot write"):
        upload(plan)
    assert contents(str(place)) == {".hidden": b"h", "inner/empty": b""}
    (tmp_path / "blobs/1").write_bytes(content)
    (place / ".model.safetensors.uploading").write_bytes(content[:5])  # as a kill leaves it
    rest = plan_upload(str(model), str(place))
    assert [file.name for file in rest.sent] == ["model.safetensors", "config.json"]
    upload(rest)
    assert contents(str(place)) == contents_of_local(model)


def test_a_model_is_none_while_its_weights_are_replaced(model: pathlib.Path, target: str) -> None:
    upload(plan_upload(str(model), target))
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").write_bytes(bytes(3_000_000))
    plan = plan_upload(str(model), target, replace=True)
    seen: list[bool] = []
    upload(plan, lambda count: seen.append("config.json" in contents(target)))
    assert [file.name for file in plan.sent] == ["model.safetensors", "config.json"] and seen[0] is False
    assert contents(target) == contents_of_local(model)


def test_a_file_that_was_written_after_its_upload_counts_as_another_one(
    model: pathlib.Path, tmp_path: pathlib.Path, target: str
) -> None:
    upload(plan_upload(str(model), target))
    assert plan_upload(str(model), target).sent == ()
    with (tmp_path / "blobs/1").open("r+b") as weights:
        weights.seek(500_000)  # no sample of its content is compared here
        weights.write(b"other")
    os.utime(weights.name, (time.time() + 5, time.time() + 5))
    with pytest.raises(InputError, match=r"differs.*model\.safetensors"):
        plan_upload(str(model), target)


def test_a_file_that_changes_while_it_is_sent_is_not_taken_for_whole(
    model: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    plan = plan_upload(str(model), str(tmp_path / "store/llama"))

    def grow(count: int) -> None:
        with (tmp_path / "blobs/1").open("ab") as file:
            file.write(b"x")

    with pytest.raises(StorageError, match="changed during the upload"):
        upload(plan, grow)
    assert not {"model.safetensors", "config.json"} & contents(str(tmp_path / "store/llama")).keys()


def test_what_cannot_be_uploaded_is_refused(model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "none").mkdir()
    os.mkfifo(tmp_path / "none-pipe")
    loop = tmp_path / "loop"
    loop.mkdir()
    (loop / "again").symlink_to(loop)
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    there = tmp_path / "there"
    for path, place, words in (
        ("none", there, "empty directory"),
        ("gone", there, "No such file"),
        ("dangling", there, "No such file"),
        ("none-pipe", there, "neither a file nor a directory"),
        ("loop", there, "leads back"),
        ("llama", model, "same place"),
        ("llama", model / "inner/x", "one lies in the other"),
        ("llama", tmp_path, "one lies in the other"),
        ("llama", "nope://x/y", "nope:// is not allowed"),
        ("llama", "http://127.0.0.1:9/x", "http:// is not allowed"),
    ):
        done = fleetune_upload(tmp_path / path, place)
        assert done.exit_code == 2 and words in done.output, (path, place, done.output)
    assert fleetune_upload("s3://bucket/x", there).exit_code == 2
    assert "PATH is empty" in fleetune_upload("", there).output and "URL is empty" in fleetune_upload(loop, "").output
    assert not there.exists()


def test_a_place_that_may_not_be_written_is_told(model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with changes(refused="store"), pytest.raises(StorageError, match=r"cannot write cut://.*Permission denied"):
        upload(plan_upload(str(model), f"cut://{tmp_path}/store/llama"))


def test_no_directory_is_a_model_without_a_config(model: pathlib.Path, target: str) -> None:
    (model / "config.json").unlink()
    assert "model.path or data.train" in fleetune_upload(model, target).output
    with pytest.raises(InputError):
        plan_upload(str(model) + "-gone", target)
