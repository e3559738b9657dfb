"""What a worker process finds around it."""

from __future__ import annotations

import os

import pytest

from cluster.job_environment import JobEnvironment

NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}),
        ({"PYTORCH_ALLOC_CONF": ""}, {"PYTORCH_ALLOC_CONF": ""}),
    ],
)
def test_gpu_memory_grows_in_segments_unless_the_user_has_set_the_allocator(
    given: dict[str, str], expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, "x")  # restored at the end
        monkeypatch.delenv(name)
    JobEnvironment(variables=given, gpus=True).enter()
    assert {name: os.environ[name] for name in NAMES if name in os.environ} == expected


def test_workers_without_gpus_keep_their_environment() -> None:
    before = dict(os.environ), os.getcwd()
    JobEnvironment().enter()
    assert (dict(os.environ), os.getcwd()) == before
