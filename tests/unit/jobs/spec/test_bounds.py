"""Every number of a spec has bounds, and those of a gang are bounds for the arithmetic of the scheduler."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from cluster.capacity.gang import MOST_CPUS_PER_WORKER, MOST_GPUS_PER_WORKER, MOST_OF_A_GANG, MOST_WORKERS, Gang
from cluster.capacity.occupancy import Occupancy
from cluster.errors import SpecError
from jobs.spec.command import CommandSpec
from jobs.spec.finetune import Spec
from jobs.spec.load import spec_of
from tests.support.queuejobs import inventory
from tests.support.service import command, finetune


def unbounded(schema: Any, where: str = "") -> Iterator[str]:
    """Numbers of a JSON schema that may be as large as one likes."""
    if isinstance(schema, list):
        for one in schema:
            yield from unbounded(one, where)
    if not isinstance(schema, dict):
        return
    if schema.get("type") in ("integer", "number") and not schema.keys() & {
        "maximum",
        "exclusiveMaximum",
        "const",
        "enum",
    }:
        yield where
    for name, value in schema.items():
        yield from unbounded(value, f"{where}.{name}")


@pytest.mark.parametrize("model", [Spec, CommandSpec])
def test_every_number_of_a_spec_has_an_upper_bound(model: Any) -> None:
    assert list(unbounded(model.model_json_schema())) == []


@pytest.mark.parametrize(
    "resources",
    [
        {"cpus_per_worker": 2**31},
        {"cpus_per_worker": MOST_CPUS_PER_WORKER, "num_workers": MOST_WORKERS},
        {"num_workers": 2**31},
        {"num_workers": {"min": 1, "max": MOST_WORKERS}, "cpus_per_worker": 300},
    ],
)
@pytest.mark.parametrize("spec", [command, finetune])
def test_a_gang_that_no_cluster_could_hold_is_refused_whether_machines_answer_or_not(spec: Any, resources: Any) -> None:
    with pytest.raises(SpecError, match="resources"):
        spec_of(spec(resources=resources))


def test_the_largest_gangs_are_compared_with_nodes_without_an_overflow() -> None:
    occupancy = Occupancy.of(inventory(8, 0))
    shapes = [
        Gang(MOST_WORKERS, MOST_OF_A_GANG // MOST_WORKERS, 0),
        Gang(MOST_OF_A_GANG // MOST_CPUS_PER_WORKER, MOST_CPUS_PER_WORKER, 1),
        Gang(MOST_OF_A_GANG // MOST_GPUS_PER_WORKER, 1, MOST_GPUS_PER_WORKER),
    ]
    for gang in shapes:
        gang.check_size()
        assert all(occupancy.spans_nodes(gang, kind) for kind in range(len(occupancy.types)))
        assert not occupancy.fits_every_node(gang)
