"""Asks the fork server for a Ray worker. Imports little: it runs while Python starts."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import socket
from collections.abc import Collection, Mapping

SERVER = "FLEETUNE_TESTS_FORK_SERVER"  # variable with the place of its socket
FORKED = b"+"  # the answer once the worker lives; its exit code follows
LOG = "FLEETUNE_TESTS_FORK_LOG"  # variable with a file for a line about each worker
ONLY = "FLEETUNE_TESTS_FORK_ONLY"  # variable with the name of another one: only workers that have it are forked
SAME, ENTERED = ("pid", "user", "ipc"), ("net", "uts", "mnt")  # namespaces
_OF_SETUP = re.compile("--(language|serialized-runtime-env-context)=")


def hand_over(started: list[str]) -> None:
    """End with the exit code of the forked worker; return if there is none. `started`: Python and its arguments."""
    answer = _ask(started)
    if os.environ.get(LOG):
        with open(os.environ[LOG], "a") as log:
            log.write(f"{os.path.basename(started[1])} {answer}\n")
    if not answer.lstrip("-").isdigit():
        return
    code = int(answer)
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def _ask(started: list[str]) -> str:
    """Return the exit code of the forked worker as text, or the reason why none was forked."""
    place = os.environ.get(SERVER, "")
    try:
        with open(f"{place}.json") as file:
            server = json.load(file)
    except OSError:
        return "no server yet"
    words, environment, folder = started[1:], dict(os.environ), os.getcwd()
    if words[0].endswith("setup_worker.py"):
        given = dict(word.removeprefix("--").split("=", 1) for word in words if _OF_SETUP.match(word))
        context = json.loads(given.get("serialized-runtime-env-context") or "{}")
        prefix = context.get("command_prefix") or []
        if len(prefix) == 3 and prefix[::2] == ["cd", "&&"] and re.fullmatch(r"[\w./-]+", prefix[1]):
            folder, prefix = prefix[1], []
        python = os.path.abspath(context.get("py_executable") or started[0])
        if prefix or context.get("override_worker_entrypoint") or python != os.path.abspath(started[0]):
            return "another program"
        words = [word for word in words[1:] if not _OF_SETUP.match(word)]
        environment |= _expanded(context.get("env_vars") or {})
    if os.environ.get(ONLY, "PATH") not in environment:
        return "not to be forked"
    read = read_by_imports(environment, server["read_by_imports"], server["set_by_imports"])
    if read != server["environment"]:
        return f"other variables: {sorted(read.items() ^ server['environment'].items())}"
    with open("/proc/self/cgroup") as file:
        if file.read() != server["cgroup"]:
            return "another cgroup"
    spaces = {name: os.readlink(f"/proc/self/ns/{name}") for name in (*SAME, *ENTERED)}
    if any(spaces[name] != server["namespaces"][name] for name in SAME):
        return "another namespace"
    entered = [name for name in ENTERED if spaces[name] != server["namespaces"][name]]
    handles = [0, 1, 2, *(os.open(f"/proc/self/ns/{name}", os.O_RDONLY) for name in entered)]
    umask = os.umask(0o22)
    os.umask(umask)
    request = {
        "words": words, "environment": environment, "folder": folder, "entered": entered, "umask": umask,
        "nice": os.nice(0), "blocked": [int(one) for one in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
        "limits": {name: resource.getrlimit(getattr(resource, name)) for name in dir(resource) if "RLIMIT_" in name},
    }  # fmt: skip
    content = json.dumps(request).encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as end:
        try:
            end.connect(place)
        except OSError as error:
            return f"no server: {error}"
        try:
            socket.send_fds(end, [len(content).to_bytes(8, "little")], handles)
            end.sendall(content)
            if end.recv(1) != FORKED:
                return "the server has failed"
        except OSError as error:
            return f"the server has failed: {error}"
        return end.recv(64).decode() or "1"  # without a code the server has ended; its worker may live


def read_by_imports(
    environment: Mapping[str, str], prefixes: Collection[str], without: Collection[str]
) -> dict[str, str]:
    """Return the variables whose names have one of the prefixes. `without`: names, or name=value."""
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(tuple(prefixes)) and not {name, f"{name}={value}"}.intersection(without)
    }


def _expanded(variables: dict[str, str]) -> dict[str, str]:
    """Return this process's environment with these variables, expanded as Ray's `update_envs` does."""
    kept = dict(os.environ)
    for name, value in variables.items():
        os.environ[name] = re.sub(r"\$\{[A-Z0-9_]+\}", "", os.path.expandvars(value))
    found = dict(os.environ)
    os.environ.clear()
    os.environ.update(kept)
    return found
