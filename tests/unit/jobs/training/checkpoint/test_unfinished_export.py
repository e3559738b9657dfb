"""Two exports never write to one directory, and a killed one does not stop the next."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from cluster.errors import InputError
from jobs.run.events import this_driver
from jobs.training.checkpoint.unfinished_export import WRITER, unfinished


def left_by(folder: Path, **writer: object) -> Path:
    new = folder / "model.new"
    new.mkdir()
    (new / WRITER).write_text(json.dumps({"token": "other", **this_driver(), **writer}))
    (new / "model.safetensors").write_text("half")
    return new


def test_a_second_export_leaves_the_files_of_the_first_one(tmp_path: Path) -> None:
    new, alive = left_by(tmp_path, pid=os.getppid()), f"process {os.getppid()} on {this_driver()['host']} writes"
    with pytest.raises(InputError, match=alive), unfinished(str(tmp_path / "model")):
        pass
    assert (new / "model.safetensors").read_text() == "half"


def test_what_a_killed_export_has_left_is_removed(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    new = left_by(tmp_path, pid=ended.pid)
    with unfinished(str(tmp_path / "model")) as folder:
        assert os.listdir(folder) == [WRITER] and "the next export removes this" in (new / WRITER).read_text()
    assert not new.exists()


def test_an_export_of_another_machine_is_dead_after_an_hour_without_a_file(tmp_path: Path) -> None:
    new = left_by(tmp_path, host="other", pid=7)
    with pytest.raises(InputError, match="process 7 on other writes"), unfinished(str(tmp_path / "model")):
        pass
    for file in new.iterdir():
        os.utime(file, (0, 0))
    with unfinished(str(tmp_path / "model")):
        assert not (new / "model.safetensors").exists()


def test_an_export_of_an_earlier_release_names_no_writer(tmp_path: Path) -> None:
    new = left_by(tmp_path)
    (new / WRITER).unlink()
    with pytest.raises(InputError, match="another process writes an export"), unfinished(str(tmp_path / "model")):
        pass
    os.utime(new / "model.safetensors", (0, 0))
    with unfinished(str(tmp_path / "model")) as folder:
        assert os.listdir(folder) == [WRITER]


def test_after_an_error_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no space"), unfinished(str(tmp_path / "model")):
        raise OSError("no space")
    assert not os.listdir(tmp_path)
