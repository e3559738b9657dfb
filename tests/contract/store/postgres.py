"""A PostgreSQL server of the tests' own: in a temporary folder, on a socket in it, and gone with the tests."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

START_S = 120.0
# What a crash of the machine would do is PostgreSQL's own matter, and tests wait for no disk.
_SETTINGS = ("fsync=off", "listen_addresses=", "max_connections=60", "shared_buffers=32MB")


def binaries() -> Path | None:
    """The newest that is installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).resolve().parent if on_path else None


@contextlib.contextmanager
def server(bin_dir: Path) -> Iterator[str]:
    """The socket's folder. Any user may connect as `fleetune`, and no password is asked for."""
    folder = Path(tempfile.mkdtemp(prefix="fleetune-pg-", dir="/tmp"))  # a socket's path has at most 107 characters
    become = _as_another_user(folder)
    data = folder / "data"
    initdb = [
        str(bin_dir / "initdb"),
        "-D",
        str(data),
        "-U",
        "fleetune",
        "-A",
        "trust",
        "-E",
        "UTF8",
        "--locale=C.UTF-8",
        "-N",
    ]
    settings = [part for setting in (*_SETTINGS, f"unix_socket_directories={folder}") for part in ("-c", setting)]
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        subprocess.run([*become, *initdb], check=True, capture_output=True, cwd=folder)
        log = stack.enter_context((folder / "log").open("wb"))
        process = subprocess.Popen(
            [*become, bin_dir / "postgres", "-D", data, *settings], stdout=log, stderr=log, cwd=folder
        )
        stack.callback(_stop, process)
        _wait(process, folder)
        yield str(folder)


def url(folder: str, database: str) -> str:
    return f"postgresql://fleetune@/{database}?host={folder}"


def run(folder: str, *statements: str) -> None:
    """In the database that is always there, each by itself."""
    import psycopg

    with psycopg.connect(f"host={folder} user=fleetune dbname=postgres", autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def _as_another_user(folder: Path) -> list[str]:
    """PostgreSQL refuses to run as root; setpriv also sees to it that the server ends with the tests."""
    setpriv = ["setpriv", "--pdeathsig", "INT"]
    if os.geteuid() != 0:
        return setpriv
    user = next(pwd.getpwnam(name) for name in ("postgres", "nobody") if _exists(name))
    os.chown(folder, user.pw_uid, user.pw_gid)
    return [*setpriv, f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]


def _exists(user: str) -> bool:
    return any(entry.pw_name == user for entry in pwd.getpwall())


def _wait(process: subprocess.Popen[bytes], folder: Path) -> None:
    import psycopg

    deadline = time.monotonic() + START_S
    while True:
        try:
            run(str(folder))
            return
        except psycopg.OperationalError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((folder / "log").read_text()) from None
            time.sleep(0.05)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)  # drops its clients and ends
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGQUIT)
        process.wait(120)
