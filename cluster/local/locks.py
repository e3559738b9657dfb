"""Locks on files, without waiting, and lock files that were left behind. Light to import."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import time
from typing import Final

# Types of file systems that other machines may use too.
_SHARED: Final = ("nfs", "cifs", "smb", "lustre", "gpfs", "beegfs", "ceph", "fuse.")
_LEFT_AFTER_S: Final = 600.0  # an older lock on such a file system was left behind


def try_lock(descriptor: int, shared: bool = False) -> bool:
    """Lock an open file, and return True; False if others hold the lock.

    Args:
        shared: a lock that several may hold, but not while there is an exclusive one.
    """
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def remove_if_left(path: str) -> bool:
    """Remove a lock file whose process has ended, and return whether it was removed.

    The existence of the file is the lock. Its process keeps the file open until it removes it, as
    `torch.utils.file_baton` does. Processes of other machines are not visible. So on a file system that other machines
    may use, the file must also be ten minutes old.
    """
    with contextlib.suppress(FileNotFoundError):
        if _is_open(path) or (_is_shared(path) and time.time() - os.stat(path).st_mtime < _LEFT_AFTER_S):
            return False
        os.remove(path)
        return True
    return False


def _is_open(path: str) -> bool:
    real = os.path.realpath(path)
    for descriptor in glob.iglob("/proc/[0-9]*/fd/*"):
        with contextlib.suppress(OSError):  # it is closed meanwhile, or belongs to another user
            if os.readlink(descriptor) == real:
                return True
    return False


def _is_shared(path: str, table: str = "/proc/self/mountinfo") -> bool:
    """Return whether other machines may use the file system of `path` too. `table`: mounts, as proc(5) describes."""
    real, found = os.path.realpath(path), ("", "")
    with open(table) as mounts:
        for fields in map(str.split, mounts):
            mount, kind = fields[4], fields[fields.index("-") + 1]  # before it, their number varies
            if len(mount) >= len(found[0]) and (f"{real}/").startswith(f"{mount.rstrip('/')}/"):
                found = mount, kind
    return found[1].startswith(_SHARED)
