"""The GPUs of this machine, as a program named `nvidia-smi` lists them, and its CPUs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.errors import BackendUnreachable, MachinesFailed
from cluster.local.backend import LocalBackend
from cluster.local.machine import cpus_here, hardware_here, this_machine

TWO_MIG = "  MIG 3g.40gb Device 0: (UUID: MIG-aa)\n  MIG 3g.40gb Device 1: (UUID: MIG-bb)\n"
LIST = "".join(f"GPU {n}: NVIDIA H100 80GB HBM3 (UUID: GPU-{n}{n}{n}{n}-4d2e)\n" for n in range(8)) + TWO_MIG

Smi = Callable[[str], None]


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Smi:
    """Install a program in the place of nvidia-smi: the lines of a shell script."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "bin").mkdir()

    def install(script: str) -> None:
        program = tmp_path / "bin" / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)

    return install


def listing(text: str) -> str:
    return f"cat <<'END'\n{text}END"


@pytest.mark.parametrize(
    ("visible", "gpus"),
    [
        (None, 8),
        ("", 0),
        ("0,1", 2),
        ("7, 3 ,0", 3),
        ("GPU-0000,GPU-7777-4d2e", 2),
        ("MIG-aa,MIG-bb", 2),
        ("0,-1,1", 1),  # CUDA stops at the first name of no GPU
        ("8", 0),
        ("NoDevFiles", 0),
    ],
)
def test_a_machine_has_the_gpus_that_are_visible(
    smi: Smi, monkeypatch: pytest.MonkeyPatch, visible: str | None, gpus: int
) -> None:
    smi(listing(LIST))
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    here = this_machine()
    assert (here.gpus, here.accelerator_type) == (gpus, "H100" if gpus else None)


def test_the_hardware_of_a_machine_is_that_of_all_its_gpus(smi: Smi, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task of Ray without GPUs asks, from which Ray hides them."""
    smi(f'[ "$1" = -L ] || exec printf "81559\\n40960\\n"\n{listing(LIST)}')
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    here = hardware_here()
    assert (here.gpu, here.gpu_bytes) == ("H100", 40960 << 20)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("Tesla T4", "T4"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTX-PRO-6000"),
        ("NVIDIA GeForce RTX 4090", "GeForce-RTX-4090"),
    ],
)
def test_gpus_have_the_names_that_ray_gives_them(smi: Smi, name: str, model: str) -> None:
    smi(listing(f"GPU 0: {name} (UUID: GPU-0000-4d2e)\n"))
    assert this_machine().accelerator_type == model


@pytest.mark.parametrize("code", [6, 9, 12])
def test_a_machine_without_a_gpu_or_its_driver_has_none(smi: Smi, code: int) -> None:
    smi(f"echo NVIDIA-SMI has failed; exit {code}")
    assert this_machine().gpus == 0


def test_gpus_that_cannot_be_counted_are_an_error_and_are_asked_for_again(smi: Smi, tmp_path: Path) -> None:
    backend = LocalBackend(tmp_path / "queue")
    smi("echo Failed to initialize NVML: Driver/library version mismatch; exit 18")
    with pytest.raises(MachinesFailed, match=r"cannot be counted.*version mismatch.*CUDA_VISIBLE_DEVICES"):
        this_machine()
    with pytest.raises(BackendUnreachable, match="version mismatch"):
        backend.inventory()
    assert hardware_here().gpu is None
    smi("exit 9")  # the driver is not loaded yet
    assert [node.gpus for node in backend.inventory().nodes] == [0]
    smi(listing(LIST))
    assert [node.gpus for node in backend.inventory().nodes] == [8]
    smi("exit 9")
    assert [node.gpus for node in backend.inventory().nodes] == [8]


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {}, 64),
        ("0::/pod/worker\n", {"pod/cpu.max": "400000 100000\n", "pod/worker/cpu.max": "max 100000\n"}, 4),
        ("0::/pod\n", {"pod/cpu.max": "50000 100000\n"}, 1),
        ("0::/pod\n", {"pod/cpu.max": "9900000 100000\n"}, 64),
        ("3:cpu,cpuacct:/docker/3f\n", {"cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "100000"}, 2),
        ("3:cpu,cpuacct:/docker/3f\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 64),
    ],
)
def test_the_limit_of_a_container_counts_as_its_cpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: str, files: dict[str, str], expected: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)))
    written = {"proc/self/cgroup": groups, **{f"sys/fs/cgroup/{name}": text for name, text in files.items()}}
    for name, text in written.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpus_here(tmp_path) == expected
