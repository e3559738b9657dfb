"""Hosts on one machine: a network namespace each, with an address of its own on a common bridge.

Needs root, iproute2 and util-linux. Every host has a /tmp and a home of its own (a mount namespace), so that storage
which is not shared shows.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import os
import pathlib
import secrets
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.support.gangs import FORKED, ROOT
from tests.support.raycluster import LEAN

BIN = pathlib.Path(sys.executable).parent
_CLONE_NEWNET = 0x40000000  # of setns(2)
ASKED_S = 3.0  # `ray start --block` takes half a minute to end when asked; what is left then is killed


def available() -> bool:
    """Whether this machine lets a test make hosts."""
    return os.geteuid() == 0 and shutil.which("ip") is not None and shutil.which("unshare") is not None


@dataclass
class Host:
    """One host; what it runs ends with it."""

    name: str
    address: str
    env: dict[str, str]
    private: pathlib.Path  # mounted at /tmp inside
    settled: str = "true"  # shell commands with which its own view of the file system, and its name, are made
    started: list[subprocess.Popen[Any]] = field(default_factory=list)

    def command(self, *arguments: str) -> list[str]:
        """The command line that runs `arguments` on this host."""
        mount = f'{self.settled} && mount --bind "$0" /tmp && exec "$@"'
        own = ["unshare", "--mount", "--uts", "--propagation", "private"]
        inside = [*own, "sh", "-c", mount, str(self.private), *arguments]
        return ["ip", "netns", "exec", self.name, *inside]

    def run(self, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments), env=self.env, cwd=ROOT, capture_output=True, text=True, timeout=timeout
        )

    def start(self, *arguments: str) -> subprocess.Popen[Any]:
        with open(self.private / "out", "ab") as out:
            process = subprocess.Popen(
                self.command(*arguments), env=self.env, cwd=ROOT, stdout=out, stderr=out, start_new_session=True
            )
        self.started.append(process)
        return process


def name_hosts(made: Mapping[str, Host], folder: pathlib.Path) -> None:
    """From now on the hosts have these names, by which they find each other."""
    names = "".join(f"{host.address} {name}\n" for name, host in made.items())
    (folder / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
    for name, host in made.items():
        own = f"hostname {shlex.quote(name)} && mount --bind {shlex.quote(str(folder / 'hosts'))} /etc/hosts"
        host.settled = f"{host.settled} && {own}"


def hide(host: Host, folder: pathlib.Path) -> None:
    """From now on the host sees an empty folder there."""
    host.settled = f"{host.settled} && mount -t tmpfs none {shlex.quote(str(folder))}"


def mount_at(host: Host, folder: pathlib.Path, place: pathlib.PurePosixPath) -> None:
    """From now on the host sees a folder at a path of two parts, whose first one exists; nothing else is below that."""
    host.settled = (
        f"{host.settled} && exec 3< {shlex.quote(str(folder))} && mount -t tmpfs none {place.parent} "
        f"&& mkdir {place} && mount --bind /proc/self/fd/3 {place} && exec 3<&-"
    )


def cut_off(host: Host) -> None:
    """Nothing reaches the host any more, nor anybody from it, and nobody is told so."""
    _ip("link", "set", _outer(host), "nomaster")


def reconnect(host: Host) -> None:
    _ip("link", "set", _outer(host), "master", _bridge(host))


def cut_off_for(host: Host, seconds: float) -> float:
    """Cut the host off for a moment; the seconds that it lasted.

    One program does it, before all others where that is allowed: it lasts longer only if the machine stands still.
    """
    line = f"ip link set {_outer(host)}"
    program = f"a=$(date +%s%N); {line} nomaster && sleep {seconds} && {line} master {_bridge(host)} || exit 1"
    command = ["nice", "-n", "-20", "sh", "-c", f"{program}; echo $(($(date +%s%N) - a))"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout) / 1e9


def processes_of(host: Host) -> list[int]:
    """Of all that runs there: what a test has on other hosts, or outside, is not among them."""
    listed = subprocess.run(["ip", "netns", "pids", host.name], capture_output=True, text=True)
    return [int(pid) for pid in listed.stdout.split()]


@contextlib.contextmanager
def inside(host: Host) -> Iterator[None]:
    """This thread is in the host's network: sockets that are made meanwhile stay there."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as own, open(f"/var/run/netns/{host.name}") as theirs:
        _enter(libc, theirs.fileno())
        try:
            yield
        finally:
            _enter(libc, own.fileno())


def _enter(libc: ctypes.CDLL, descriptor: int) -> None:
    if libc.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def answered(host: Host, url: str, token: str = "", within_s: float = 5.0) -> bytes | None:
    """What a server answers to a program on that host; None: an error, or nothing. The URL has an address, not a name.

    It starts no process, which takes a second of a core where Python and a mount namespace are part of it.
    """
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with inside(host), opener.open(request, timeout=within_s) as answer:
            return bytes(answer.read())
    except (OSError, http.client.HTTPException):
        return None


def _outer(host: Host) -> str:
    """The end of its line on the bridge."""
    return host.name.replace("-", "v")


def _bridge(host: Host) -> str:
    return host.name.partition("-")[0]


def _ip(*arguments: str, check: bool = True) -> None:
    subprocess.run(["ip", *arguments], check=check, capture_output=True)


@contextlib.contextmanager
def hosts(count: int, folder: pathlib.Path, **env: str) -> Iterator[list[Host]]:
    """Make hosts that reach each other, and nothing else; take them away at the end."""
    tag = secrets.token_hex(2)
    bridge = f"ft{tag}"
    made: list[Host] = []
    _ip("link", "add", bridge, "type", "bridge")
    _ip("link", "set", bridge, "up")
    try:
        for number in range(1, count + 1):
            made.append(_host(tag, bridge, number, folder, env))
        yield made
    finally:
        for host in made:
            for process in host.started:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, 15)
        _wait_for_end([process for host in made for process in host.started])
        for host in made:
            end_what_is_left(host)
            _ip("netns", "delete", host.name, check=False)
        _ip("link", "delete", bridge, check=False)


def _host(tag: str, bridge: str, number: int, folder: pathlib.Path, env: dict[str, str]) -> Host:
    name, outer, address = f"ft{tag}-{number}", f"ft{tag}v{number}", f"10.77.0.{number}"  # see `_outer`
    _ip("netns", "add", name)
    _ip("link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", name)
    _ip("link", "set", outer, "master", bridge, "up")
    _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
    _ip("-n", name, "link", "set", "eth0", "up")
    _ip("-n", name, "link", "set", "lo", "up")
    private = folder / name
    private.mkdir()
    private.chmod(0o1777)
    home = {"HOME": "/tmp", "GLOO_SOCKET_IFNAME": "eth0", "PYTHONPATH": FORKED, "RAY_USAGE_STATS_ENABLED": "0"}
    path = {"PATH": f"{BIN}:{os.environ['PATH']}"}
    return Host(name, address, {**os.environ, **home, **path, **LEAN, **env}, private)


def _wait_for_end(processes: list[subprocess.Popen[Any]]) -> None:
    deadline = time.monotonic() + ASKED_S
    for process in processes:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.wait()


def end_what_is_left(host: Host) -> None:
    """Ray's processes leave their session; they are still in the namespace, and only ours are."""
    for pid in processes_of(host):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)
