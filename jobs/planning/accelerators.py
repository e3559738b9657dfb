"""Accelerators as data, and the machines that `--on 2x8xH100-80` names. Pure.

Peaks and bandwidths of memory are those of the vendors' data sheets, without sparsity. `memory_gib` is the capacity
that PyTorch reports, which is less than the name says. Links, network and host memory are those of usual machines, and
vary.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final

from cluster.errors import InputError
from cluster.text import did_you_mean

GIB: Final = 2**30
CPU: Final = "CPU"  # name of an accelerator that is the cores of a machine


@dataclass(frozen=True)
class Accelerator:
    """One model of GPU, or the cores of one CPU worker.

    Attributes:
        name: model and nominal memory, such as H100-80.
        memory_gib: memory that programs can use, GiB.
        bandwidth_gb_s: of its memory, GB/s.
        tflops: dense peak of bf16 matrix products with fp32 sums, TFLOP/s; of fp16 where there is no bf16.
        fp32_tflops: dense peak of fp32 matrix products, TFLOP/s; TF32 is off, as in torch by default.
        link_gb_s: to the other GPUs of its node, GB/s in one direction.
        host_gb_s: to its host's memory, GB/s in one direction.
        network_gb_s: to other nodes, GB/s for each GPU in one direction, with the network that is usual for it.
        host_gib: its share of its host's memory in usual machines, such as the clouds', GiB.
        has_bf16: whether it computes in bf16.
    """

    name: str
    memory_gib: float
    bandwidth_gb_s: float
    tflops: float
    fp32_tflops: float
    link_gb_s: float
    host_gb_s: float
    network_gb_s: float
    host_gib: float
    has_bf16: bool = True

    @property
    def memory(self) -> int:
        """Usable memory in bytes."""
        return int(self.memory_gib * GIB)


ACCELERATORS: Final = {
    one.name: one
    for one in (
        Accelerator("GB300-279", 276.0, 8000, 2500, 80, 900, 225, 100, 240),
        Accelerator("GB200-186", 184.0, 8000, 2500, 80, 900, 225, 50, 240),
        Accelerator("B300-270", 267.5, 8000, 2250, 75, 900, 64, 100, 256),
        Accelerator("B200-180", 178.3, 8000, 2250, 75, 900, 64, 50, 256),
        Accelerator("H200-141", 139.8, 4800, 989, 67, 450, 64, 50, 256),
        Accelerator("H200NVL-141", 139.8, 4800, 836, 60, 64, 64, 50, 256),
        Accelerator("GH200-96", 94.5, 4000, 989, 67, 450, 450, 50, 480),
        Accelerator("H100-80", 79.1, 3350, 989, 67, 450, 64, 50, 256),
        Accelerator("H100NVL-94", 93.1, 3938, 835, 60, 64, 64, 50, 256),
        Accelerator("H100PCIE-80", 79.1, 2000, 756, 51, 64, 64, 50, 256),
        Accelerator("H800-80", 79.1, 3350, 989, 67, 200, 64, 50, 256),
        Accelerator("H20-96", 95.0, 4000, 148, 44, 450, 64, 50, 256),
        Accelerator("A100-80", 79.1, 2039, 312, 19.5, 300, 32, 25, 144),
        Accelerator("A100-40", 39.3, 1555, 312, 19.5, 300, 32, 25, 144),
        Accelerator("A800-80", 79.1, 2039, 312, 19.5, 200, 32, 25, 144),
        Accelerator("RTXPRO6000-96", 94.5, 1792, 504, 125, 64, 64, 12.5, 192),
        Accelerator("L40S-48", 44.3, 864, 362, 91.6, 32, 32, 12.5, 192),
        Accelerator("L40-48", 44.3, 864, 181, 90.5, 32, 32, 12.5, 192),
        Accelerator("L20-48", 44.3, 864, 119.5, 59.8, 32, 32, 12.5, 192),
        Accelerator("A40-48", 44.3, 696, 150, 37.4, 32, 32, 12.5, 128),
        Accelerator("RTX6000-48", 44.3, 960, 364, 91.1, 32, 32, 6.25, 128),
        Accelerator("RTX6000-24", 23.6, 672, 130.5, 16.3, 32, 16, 6.25, 96, has_bf16=False),
        Accelerator("A6000-48", 47.3, 768, 155, 38.7, 32, 32, 6.25, 128),
        Accelerator("RTX5090-32", 31.3, 1792, 210, 104.8, 64, 64, 3.1, 64),
        Accelerator("A30-24", 23.4, 933, 165, 10.3, 32, 32, 6.25, 96),
        Accelerator("A10G-24", 22.0, 600, 70, 31.2, 32, 32, 6.25, 96),
        Accelerator("A10-24", 22.0, 600, 125, 31.2, 32, 32, 6.25, 96),
        Accelerator("L4-24", 22.0, 300, 121, 30.3, 32, 32, 6.25, 96),
        Accelerator("RTX4090-24", 23.5, 1008, 165, 82.6, 32, 32, 3.1, 64),
        Accelerator("RTX3090-24", 23.5, 936, 71, 35.6, 32, 32, 3.1, 64),
        Accelerator("V100-32", 31.7, 900, 125, 15.7, 150, 16, 12.5, 96, has_bf16=False),
        Accelerator("V100-16", 15.7, 900, 125, 15.7, 150, 16, 12.5, 61, has_bf16=False),
        Accelerator("T4-16", 14.5, 320, 65, 8.1, 16, 16, 3.1, 48, has_bf16=False),
    )
}
GPUS_OF_A_NODE: Final = 8  # of usual machines
_ON: Final = re.compile(r"(?:(?P<nodes>\d+) *x *)?(?P<gpus>\d+) *x *(?P<name>(?!\d+ *x)[^,]+)", re.IGNORECASE)
_MOST: Final = 1_000_000
_NO_MODEL: Final = re.compile(r"\b(NVIDIA|TESLA|GEFORCE|QUADRO|ADA|GENERATION|BLACKWELL|SXM\d?|HBM\d?E?)\b")
_UNIT: Final = re.compile(r"(?<= )(\d{2,3}) ?G(?:I?B)?\s*$")
_SIZE: Final = re.compile(r"(\d{2,3})")


@dataclass(frozen=True)
class Machines:
    """Equal nodes with equal GPUs."""

    nodes: int
    gpus_per_node: int
    accelerator: Accelerator
    node_gib: float | None = None  # memory of a node, GiB; None: what is usual for the accelerator

    @property
    def host_memory(self) -> int:
        """A worker's share of its node's memory, bytes."""
        share = self.accelerator.host_gib if self.node_gib is None else self.node_gib / self.gpus_per_node
        return int(share * GIB)

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node

    @property
    def is_cpu(self) -> bool:
        """Whether the workers have no GPU; `accelerator` is then a worker's share of its machine."""
        return self.accelerator.name == CPU

    def __str__(self) -> str:
        nodes = f"{self.nodes}x" if self.nodes > 1 else ""
        return f"{nodes}{self.gpus_per_node}x{self.accelerator.name}"


def machines_of(text: str) -> Machines:
    """Read `8xH100-80` or, with two nodes, `2x8xH100-80`. Without nodes, see `machines_with`.

    Raises:
        InputError: the text has another form, or the accelerator is unknown; the message names similar ones.
    """
    found = _ON.fullmatch(text.strip())
    if found is None:
        form = "give GPUs and their model, such as 8xH100-80, or nodes too, such as 2x8xH100-80"
        raise InputError(f"--on {text!r}: {form}" + (". A plan is for equal GPUs" if "," in text else ""))
    accelerator, nodes, gpus = accelerator_of(found["name"]), int(found["nodes"] or 1), int(found["gpus"])
    if not (0 < nodes * gpus <= _MOST):
        raise InputError(f"--on {text!r}: the number of GPUs must be from 1 to {_MOST:,}, but is {nodes * gpus:,}")
    machines = Machines(nodes, gpus, accelerator) if found["nodes"] else machines_with(gpus, accelerator)
    if machines.gpus_per_node == 1 and not found["nodes"] and gpus > 1:
        of = accelerator.name
        raise InputError(f"--on {text!r}: {gpus} GPUs make no equal nodes: give the nodes too, such as 1x{gpus}x{of}")
    return machines


def machines_with(gpus: int, accelerator: Accelerator) -> Machines:
    """Return equal nodes with as many GPUs as possible, but at most GPUS_OF_A_NODE."""
    of_a_node = next(number for number in range(GPUS_OF_A_NODE, 0, -1) if gpus % number == 0)
    return Machines(gpus // of_a_node, of_a_node, accelerator)


def gang_machines(machines: Machines, workers: int) -> tuple[Machines, int]:
    """Return the machines of one gang of a sweep, and how many such gangs fit, each on as few nodes as possible.

    Raises:
        InputError: there are fewer GPUs than workers, or a gang would fill a node in part.
    """
    each = machines.gpus_per_node
    if workers <= each:
        share = None if machines.node_gib is None else machines.node_gib * workers / each
        return replace(machines, nodes=1, gpus_per_node=workers, node_gib=share), machines.nodes * (each // workers)
    if workers > machines.gpus or workers % each:
        raise InputError(
            f"--on {machines}: a gang of the sweep has {workers} workers (base.resources.num_workers), each with a "
            f"GPU. Give that many GPUs or more, in whole nodes"
        )
    nodes = workers // each
    return replace(machines, nodes=nodes), machines.nodes // nodes


def sizes_of(name: str) -> list[str]:
    """List the accelerators that have this name, or this model with any size of memory; case does not matter."""
    wanted = _usual(name)
    return [one for one in ACCELERATORS if wanted == one or wanted == one.rpartition("-")[0]]


def _usual(name: str) -> str:
    """Return the name as it is in ACCELERATORS: of "GeForce-RTX-4090", "A100 SXM4 80GB" or "RTX A6000"."""
    parts = _UNIT.sub(r"\1", _NO_MODEL.sub(" ", name.upper().replace("-", " "))).split()
    size = _SIZE.fullmatch(parts[-1]) if len(parts) > 1 else None
    model = re.sub(r"^RTX(?=A\d)", "", "".join(parts[:-1] if size else parts))
    return f"{model}-{size[1]}" if size else model


def accelerator_of(name: str) -> Accelerator:
    """Find an accelerator by its name, or by its model if that has one size of memory; case does not matter.

    Raises:
        InputError: there is none, or there are several sizes.
    """
    wanted, sizes = _usual(name), sizes_of(name)
    if len(sizes) == 1:
        return ACCELERATORS[sizes[0]]
    if sizes:
        raise InputError(f"{name} is made with several sizes of memory: give {' or '.join(sizes)}")
    within = [one for one in ACCELERATORS if wanted and wanted in one] or _named_in(wanted)
    hint = f"; did you mean {' or '.join(within)}?" if within else did_you_mean(wanted, ACCELERATORS) or "."
    raise InputError(f"the accelerator {name!r} is not known{hint} Known are {', '.join(ACCELERATORS)}, all of NVIDIA")


def _named_in(wanted: str) -> list[str]:
    """List the accelerators whose model, and no longer one, is a part of the name: H100-80 for H100SXM5."""
    models = [one.rpartition("-")[0] for one in ACCELERATORS]
    longest = max((model for model in models if model in wanted), key=len, default="")
    named = [one for one in ACCELERATORS if one.rpartition("-")[0] == longest]
    return [one for one in named if wanted.endswith(one.rpartition("-")[2])] or named


def accelerator_with(model: str, memory: int) -> Accelerator | None:
    """Find the accelerator of this model whose memory is nearest.

    Args:
        model: as Ray names it, such as A100.
        memory: that a driver reports, bytes; 0: not known.
    """
    alike = [ACCELERATORS[name] for name in sizes_of(model)]
    if not alike:
        return None
    nearest = min(alike, key=lambda one: abs(one.memory - memory))
    return replace(nearest, memory_gib=min(nearest.memory_gib, memory / GIB)) if memory else nearest
