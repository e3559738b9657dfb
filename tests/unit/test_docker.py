"""What the container files promise, as far as it can be told without an engine."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
BIN = Path(sys.executable).parent
IMAGES = ("control", "worker")


class Instruction(NamedTuple):
    stage: str
    word: str
    text: str


def instructions() -> list[Instruction]:
    """Of the Dockerfile, with the name of their stage; continued lines joined, comments left out."""
    lines = [line for line in (DOCKER / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    found, stage = [], ""
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        if line.strip():
            word, _, text = line.strip().partition(" ")
            stage = text.rpartition(" AS ")[2] if word == "FROM" else stage
            found.append(Instruction(stage, word, text.strip()))
    return found


def of_image(target: str, word: str) -> list[str]:
    """These instructions of a target and of what it is built from, first ones first."""
    bases = {one.stage: one.text.split()[0] for one in instructions() if one.word == "FROM"}
    chain = [target]
    while bases[chain[0]] in bases:
        chain.insert(0, bases[chain[0]])
    return [one.text for stage in chain for one in instructions() if (one.stage, one.word) == (stage, word)]


def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((DOCKER / "compose.yaml").read_text()))


def services() -> dict[str, dict[str, Any]]:
    return dict(compose()["services"])


def test_the_linters_have_nothing_to_say() -> None:
    hadolint = ["hadolint", str(DOCKER / "Dockerfile")]
    for command in (hadolint, ["shellcheck", "--shell=sh", str(DOCKER / "entrypoint.sh")]):
        done = subprocess.run([BIN / command[0], *command[1:]], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_base_is_another_stage_or_pinned_to_a_patch_release() -> None:
    stages = {one.stage for one in instructions() if one.word == "FROM"}
    outer = {one.text.split()[0] for one in instructions() if one.word == "FROM"} - stages
    assert outer == {"${BASE}"}
    (base,) = [one.text for one in instructions() if one.word == "ARG"]
    assert re.fullmatch(r"BASE=python:\d+\.\d+\.\d+-slim-[a-z]+(@sha256:[0-9a-f]{64})?", base)
    python = re.search(r":(\d+)\.(\d+)", base)
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert python and wanted == f">={python[1]}.{python[2]}"


@pytest.mark.parametrize("target", IMAGES)
def test_images_run_as_a_user_without_rights_and_without_a_shell_in_between(target: str) -> None:
    assert of_image(target, "USER") == ["10001:10001"]
    assert of_image(target, "ENTRYPOINT") == ['["tini", "--", "entrypoint.sh"]']
    assert [text[0] for text in of_image(target, "CMD")] == ["["]
    assert any("useradd --uid 10001" in text for text in of_image(target, "RUN"))


def test_the_server_says_whether_it_is_well() -> None:
    (check,) = of_image("control", "HEALTHCHECK")
    assert "/healthz" in check and "CMD [" in check
    assert of_image("worker", "HEALTHCHECK") == []  # Ray's nodes: compose.yaml asks the head


def test_everything_that_is_installed_has_the_tested_versions_and_leaves_no_cache() -> None:
    installs = [one for one in instructions() if one.word == "RUN" and "pip install" in one.text]
    assert len(installs) == 4
    assert all("-c constraints.txt" in one.text for one in installs)
    assert "PIP_NO_CACHE_DIR=1" in " ".join(of_image("build-control", "ENV"))
    fetched = [one.text for one in instructions() if "apt-get install" in one.text]
    assert all("--no-install-recommends" in text and "rm -rf /var/lib/apt/lists" in text for text in fetched)


def test_the_source_is_built_without_what_the_empty_packages_have_left() -> None:
    """setuptools takes the empty __init__.py of the first installation, which are newer, and leaves ours out."""
    built = [text for target in IMAGES for text in of_image(f"build-{target}", "RUN") if "--force-reinstall" in text]
    assert len(built) == len(IMAGES) and all(text.startswith("rm -rf build ./*.egg-info && pip ") for text in built)


def test_the_extras_that_are_installed_exist_and_the_server_has_no_torch() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {target: " ".join(of_image(f"build-{target}", "RUN")) for target in IMAGES}
    found = {target: set(re.findall(r'"\.\[([a-z0-9,]+)\]"', text)[0].split(",")) for target, text in named.items()}
    assert found == {"control": {"postgres", "s3", "serve"}, "worker": {"s3", "train"}}
    assert set.union(*found.values()) <= extras.keys()
    assert not any(re.match("torch|deepspeed", one) for extra in found["control"] for one in extras[extra])
    assert any(one.startswith("ray[") for one in extras["train"])


def test_what_is_copied_exists_and_is_let_into_the_build() -> None:
    copies = [one.text.split() for one in instructions() if one.word == "COPY" and "--from=" not in one.text]
    copied = {word for words in copies for word in [one for one in words if not one.startswith("--")][:-1]}
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    assert copied == allowed
    assert all((ROOT / path).exists() for path in copied)
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    assert all(any(fnmatch(path, pattern) for path in copied) for pattern in packages)


def test_every_service_is_built_from_a_target_of_the_dockerfile() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for name, service in services().items():
        build, target = service["build"], service["build"]["target"]
        assert (DOCKER / build["context"] / build["dockerfile"]).resolve() == DOCKER / "Dockerfile"
        assert service["image"] == f"fleetune-{target}:{version}"
        assert target == ("control" if name == "server" else "worker")
    assert {one["command"][0] for one in services().values()} == {"head", "worker", "serve"}
    cpus = [
        one["command"][one["command"].index("--num-cpus") + 1]
        for one in services().values()
        if one["command"][0] != "serve"
    ]
    assert cpus == ["0", "${WORKER_CPUS:-2}", "${WORKER_CPUS:-2}"], "together they announce what the machine has"


def test_roles_of_the_services_are_cases_of_the_entrypoint() -> None:
    cases = re.findall(r"^    ([a-z]+)\)$", (DOCKER / "entrypoint.sh").read_text(), flags=re.MULTILINE)
    assert cases == ["serve", "head", "worker"]
    text = (DOCKER / "entrypoint.sh").read_text()
    assert text.count("exec ") == 4 and "set -eu" in text
    assert (DOCKER / "entrypoint.sh").stat().st_mode & 0o111


@pytest.fixture
def started(tmp_path: Path) -> Callable[[], str]:
    """A start of a container: `serve` ends at once, and all other commands of fleetune are the real ones."""
    home, programs = tmp_path / "home", tmp_path / "bin"
    home.mkdir()
    programs.mkdir()
    fleetune = f'#!/bin/sh\n[ "$1" = serve ] && echo served || exec {BIN / "fleetune"} "$@"\n'
    (programs / "fleetune").write_text(fleetune)
    (programs / "fleetune").chmod(0o755)

    def start() -> str:
        env = {"PATH": f"{programs}:{BIN}:/usr/bin:/bin", "FLEETUNE_HOME": str(home), "HOME": str(home)}
        done = subprocess.run([DOCKER / "entrypoint.sh", "serve"], env=env, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, "served\n"), done.stderr
        return done.stderr

    return start


def test_the_admin_s_token_is_made_once_and_no_start_fails_because_it_is_gone(
    started: Callable[[], str], tmp_path: Path
) -> None:
    store, file = tmp_path / "home" / "queue.db", tmp_path / "home" / "admin-token"
    assert f"the admin's token is in {file}" in started()
    made = file.read_text()
    assert made.startswith("ft_") and file.stat().st_mode & 0o077 == 0
    assert started() == ""
    file.rename(file.with_name("admin-token.new"))  # as if a start had been killed before the rename
    started()
    assert file.read_text() == made and not file.with_name("admin-token.new").exists()
    file.unlink()
    file.with_name("admin-token.new").touch()  # as if a start had been killed before it wrote the token
    assert "the store has an admin's token" in started() and not file.exists()
    subprocess.run([BIN / "fleetune", "tokens", "revoke", "admin", "--store", store], check=True, capture_output=True)
    started()
    assert file.read_text().startswith("ft_") and file.read_text() != made


def test_ray_asks_every_service_for_its_token_which_is_a_secret_file() -> None:
    for service in services().values():
        assert service["environment"]["RAY_AUTH_MODE"] == "token"
        assert service["environment"]["RAY_AUTH_TOKEN_PATH"] == "/run/secrets/ray_token"
        assert service["secrets"] == ["ray_token"]
    assert compose()["secrets"]["ray_token"]["file"].startswith("./secrets/")
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert "docker/secrets/" in ignored


def test_services_share_the_data_have_few_rights_and_are_reached_from_this_machine_only() -> None:
    for service in services().values():
        assert "data:/data" in service["volumes"]
        assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]
        assert not {"privileged", "network_mode", "pid", "user"} & service.keys()
        assert all(str(port).startswith("127.0.0.1:") for port in service.get("ports", ()))
    assert services()["server"]["read_only"] is True


def test_options_of_the_server_are_options_of_fleetune_serve() -> None:
    from typer.main import get_command

    from orchestrator.cli.app import app

    command = get_command(app).commands["serve"]  # type: ignore[attr-defined]
    known = {name for parameter in command.params for name in parameter.opts}
    given = {word for word in services()["server"]["command"] if word.startswith("--")}
    (line,) = re.findall(r"exec fleetune serve (.*)", (DOCKER / "entrypoint.sh").read_text())
    in_script = set(re.findall(r"--[a-z]+", line))
    assert given | in_script <= known
