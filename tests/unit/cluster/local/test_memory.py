"""Limits and counters of memory as the kernel writes them, and what a run is told to change."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.local.memory import killed_since, memory_here
from jobs.remedies.out_of_memory import advice
from tests.support import tiny

MACHINE_BYTES = 24_684_084 * 1024


def machine(root: Path, groups: str, **files: str) -> Path:
    """A made-up /proc and /sys; `files` are of control groups, `__` for a slash."""
    written = {
        "proc/self/cgroup": groups,
        "proc/meminfo": "MemTotal:       24684084 kB\nMemFree: 1 kB\nMemAvailable: 24684080 kB\n",
        "proc/vmstat": "pgfault 7\noom_kill 5\n",
        **{f"sys/fs/cgroup/{name.replace('__', '/').replace('--', '.')}": text for name, text in files.items()},
    }
    for name, text in written.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_the_lowest_limit_of_the_control_groups_counts(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        "0::/pod/worker\n",
        **{
            "pod__worker__memory--max": "max\n",
            "pod__worker__memory--events": "low 0\noom 3\noom_kill 2\noom_group_kill 0\n",
            "pod__memory--max": "8589934592\n",
            "pod__memory--events": "oom_kill 9\n",
            "pod__memory--current": "5000\n",
            "pod__memory--stat": "anon 1\ninactive_file 1500\nactive_file 500\n",
        },
    )
    found = memory_here(root)
    assert (found.limit_bytes, found.contained, found.kills, found.used_bytes) == (8 << 30, True, (2, 5), 3000)


def test_a_container_that_sees_its_own_group_only_finds_its_limit(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        "4:memory:/docker/3f\n0::/\n",
        memory__memory__x="",
        **{
            "memory__memory--limit_in_bytes": "4294967296\n",
            "memory__memory--oom_control": "under_oom 0\noom_kill 1\n",
        },
    )
    found = memory_here(root)
    assert (found.limit_bytes, found.contained, found.kills) == (4 << 30, True, (1, 5))


def test_without_a_limit_it_is_the_machine_s(tmp_path: Path) -> None:
    root = machine(tmp_path, "4:memory:/a\n", **{"memory__a__memory--limit_in_bytes": "9223372036854771712\n"})
    found = memory_here(root)
    assert (found.limit_bytes, found.contained, found.kills) == (MACHINE_BYTES, False, (5,))
    assert found.used_bytes == 4 * 1024


@pytest.mark.parametrize(
    ("before", "after", "killed"), [((1, 5), (1, 5), False), ((1, 5), (2, 5), True), ((5,), (6,), True)]
)
def test_a_counter_that_has_grown_tells_of_a_kill(
    before: tuple[int, ...], after: tuple[int, ...], killed: bool
) -> None:
    assert killed_since(before, after) is killed


def test_the_advice_names_what_would_help_and_its_value_now(tmp_path: Path) -> None:
    spec = tiny.spec_of(
        tmp_path, tmp_path, tmp_path / "t", train__per_device_train_batch_size=4, data__eval_fraction=0.1
    )
    assert advice(spec) == (
        "Lower train.per_device_train_batch_size (4), eval.per_device_eval_batch_size (8) or data.seq_len (64). "
        "Or set train.gradient_checkpointing: true. Or use more workers than 2, or give each worker more memory."
    )
    on_gpu = tiny.spec_of(
        tmp_path, tmp_path, tmp_path / "t", resources__gpus_per_worker=1, train__gradient_checkpointing=True
    )
    assert advice(on_gpu) == (
        "Lower data.seq_len (64). Or set train.zero.offload_optimizer: cpu. Or use more workers than 2."
    )
