"""When a lock file that was left behind is removed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.local import locks
from cluster.local.locks import remove_if_left


def test_the_lock_of_a_process_that_was_killed_is_removed(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    assert not remove_if_left(str(lock)), "there is none"
    program = "import os, sys, time; os.open(sys.argv[1], os.O_CREAT | os.O_EXCL); print(flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", program, str(lock)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline()
        assert not remove_if_left(str(lock)) and lock.exists(), "its process lives"
        holder.kill()
    assert remove_if_left(str(lock)) and not lock.exists()


def test_where_other_machines_may_hold_it_a_lock_must_be_old_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "lock"
    lock.touch()
    monkeypatch.setattr(locks, "_is_shared", lambda _: True)
    assert not remove_if_left(str(lock)) and lock.exists()
    old_s = time.time() - 601
    os.utime(lock, (old_s, old_s))
    assert remove_if_left(str(lock)) and not lock.exists()


def test_the_file_system_of_the_longest_mount_point_counts(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(
        "22 1 254:0 / / rw - ext4 /dev/vda rw\n"
        "40 22 0:50 / /net rw,relatime shared:1 - nfs4 server:/net rw\n"
        "41 22 254:1 / /net/local rw - xfs /dev/vdb rw\n"
    )
    shared = {path: locks._is_shared(path, str(table)) for path in ("/net/anna/lock", "/net/local/lock", "/nets/lock")}
    assert shared == {"/net/anna/lock": True, "/net/local/lock": False, "/nets/lock": False}
