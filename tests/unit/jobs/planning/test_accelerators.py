"""Accelerators by name, and the machines that --on names."""

from __future__ import annotations

import pytest

from cluster.errors import InputError
from jobs.planning.accelerators import ACCELERATORS, GIB, accelerator_of, accelerator_with, machines_of


@pytest.mark.parametrize(
    ("text", "nodes", "each", "name"),
    [
        ("8xH100-80", 1, 8, "H100-80"),
        ("2x8xA100-40", 2, 8, "A100-40"),
        ("1xb200", 1, 1, "B200-180"),
        (" 4xA10G ", 1, 4, "A10G-24"),
        ("8xNVIDIA H100 80GB", 1, 8, "H100-80"),
        ("8xA100-40G", 1, 8, "A100-40"),
        ("8xA100-SXM4-80GB", 1, 8, "A100-80"),
        ("2xGeForce RTX 4090", 1, 2, "RTX4090-24"),
        ("2xRTX A6000", 1, 2, "A6000-48"),
        ("8xA100 80 GB", 1, 8, "A100-80"),
        ("8xA100-80-GB", 1, 8, "A100-80"),
        ("32xH100-80", 4, 8, "H100-80"),
        ("12xH100-80", 2, 6, "H100-80"),
        ("1x12xH100-80", 1, 12, "H100-80"),
        ("6xH100-80", 1, 6, "H100-80"),
        ("1x16xB200", 1, 16, "B200-180"),
        ("4xGB200", 1, 4, "GB200-186"),
        ("2xNVIDIA H100 NVL", 1, 2, "H100NVL-94"),
        ("8xH100 PCIe", 1, 8, "H100PCIE-80"),
        ("8xB300 SXM6", 1, 8, "B300-270"),
    ],
)
def test_machines_are_read_as_people_write_them(text: str, nodes: int, each: int, name: str) -> None:
    machines = machines_of(text)
    assert (machines.nodes, machines.gpus_per_node, machines.accelerator.name) == (nodes, each, name)
    assert machines.gpus == nodes * each


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("H100", "such as 8xH100-80"),
        ("", "such as 8xH100-80"),
        ("8xH10-80", "did you mean H100-80?"),
        ("8xA100", "give A100-80 or A100-40"),
        ("0xH100-80", "from 1 to"),
        ("11xH100-80", "11 GPUs make no equal nodes: give the nodes too, such as 1x11xH100-80"),
        ("99999999x8xH100-80", "from 1 to"),
        ("8x4090", "did you mean RTX4090-24?"),
        ("8xtpu", "Known are GB300-279, GB200-186, .*, all of NVIDIA$"),
        ("8xMI300X", "'MI300X' is not known. Known are"),
        ("1xGH200 480GB", "did you mean GH200-96\\? Known"),
        ("8xA100-PCIE-40GB", "did you mean A100-40\\? Known"),
        ("8xA100 80GB PCIe", "did you mean A100-80 or A100-40\\? Known"),
    ],
)
def test_wrong_machines_are_refused_with_what_to_write(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        machines_of(text)


def test_every_accelerator_is_found_by_its_name() -> None:
    for name, accelerator in ACCELERATORS.items():
        assert accelerator_of(name.lower()) is accelerator
        assert accelerator.memory_gib < float(name.rpartition("-")[2])  # the driver keeps some
        assert accelerator.fp32_tflops < accelerator.tflops


@pytest.mark.parametrize(
    ("model", "gib", "name"),
    [
        ("A100", 40.0, "A100-40"),
        ("A100", 80.0, "A100-80"),
        ("GeForce-RTX-3090", 24.0, "RTX3090-24"),
        ("RTX-PRO-6000", 95.6, "RTXPRO6000-96"),
        ("RTX-6000", 45.0, "RTX6000-48"),
        ("RTX-6000", 24.0, "RTX6000-24"),
        ("K80", 12.0, None),
    ],
)
def test_the_names_that_drivers_and_ray_report_are_found(model: str, gib: float, name: str | None) -> None:
    found = accelerator_with(model, int(gib * GIB))
    assert (found and found.name) == name
