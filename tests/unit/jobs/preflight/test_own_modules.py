"""A module of the user's must not take the place of one of Fleetune's in the workers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import jobs
from cluster.errors import SpecError
from jobs.preflight.validate import enter_working_dir

ELSEWHERE: Any = SimpleNamespace(working_dir=None)


@pytest.mark.parametrize("name", ["cluster.py", "jobs.py", "jobs/__init__.py"])
def test_a_module_with_the_name_of_one_of_ours_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/one.yaml").write_text("")  # a directory without modules is none
    (tmp_path / "clusters.py").write_text("")
    enter_working_dir(ELSEWHERE)
    (tmp_path / name).write_text("")
    with pytest.raises(SpecError, match=f"{name} has the name of one of Fleetune's own modules, and workers would"):
        enter_working_dir(ELSEWHERE)


def test_our_own_modules_may_lie_where_a_run_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(jobs.__file__).parents[1])
    enter_working_dir(ELSEWHERE)
