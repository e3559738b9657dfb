"""`tests.changed` and `tests.timings`, on a small repository of their own."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from tests import changed, conftest, timings

FILES = {
    "jobs/__init__.py": "",
    "jobs/one.py": "import jobs.two",
    "jobs/two.py": "import jobs.three",
    "jobs/three.py": "",
    "jobs/program.py": "",
    "tests/unit/test_near.py": "from jobs import one",
    "tests/unit/test_starts.py": "PROGRAM = ['-m', 'jobs.program']\n",
    "tests/unit/test_page.py": 'PAGE = "docs" + "running.md"',
}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("jobs/one.py", ["near"]),
        ("jobs/two.py", ["near"]),
        ("jobs/three.py", []),
        ("jobs/program.py", ["starts"]),
        ("tests/unit/test_page.py", ["page"]),
        ("docs/running.md", ["page"]),
        ("constraints.txt", ["near", "page", "starts"]),
        ("docs/other.md", []),
    ],
)
def test_what_is_near_a_change_is_run(repository: Path, name: str, found: list[str]) -> None:
    assert changed.touched([name, ""], repository) == [f"tests/unit/test_{one}.py" for one in found]


def test_the_tests_of_the_structure_are_always_run() -> None:
    assert changed.touched([]) == ["tests/unit/test_structure.py"]
    assert "tests/integration/jobs/training/test_export.py" in changed.touched(["jobs/training/model/tensor_names.py"])
    assert "tests/acceptance/test_failures.py" in changed.touched(["tests/support/tiny.py"])


def test_the_table_has_slow_and_long_tests_with_what_they_prove(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tests").mkdir()
    source = '''
    @pytest.mark.slow
    def test_a_fact() -> None:
        """Of one | two.

        And more.
        """

    def test_a_long_one() -> None: ...
    def test_a_quick_one() -> None: ...
    '''
    (tmp_path / "tests" / "test_x.py").write_text(textwrap.dedent(source))
    report = tmp_path / "report.xml"
    cases = [
        ("", "test_a_fact[1]", 3),
        ("", "test_a_fact[2]", 4.4),
        (".In", "test_a_long_one", 12),
        ("", "test_a_quick_one", 1),
    ]
    inside = "".join(
        f'<testcase classname="tests.test_x{inner}" name="{name}" time="{took}"/>' for inner, name, took in cases
    )
    report.write_text(f"<testsuites><testsuite>{inside}</testsuite></testsuites>")
    monkeypatch.setattr(timings, "ROOT", tmp_path)
    timings.functions.cache_clear()
    lines = timings.table(timings.read_report(report)).splitlines()
    timings.functions.cache_clear()
    assert lines[2:4] == ["| 12 | test_x.py | a long one |", "| 7 | test_x.py | a fact. Of one / two. |"]
    assert lines[4:] == ["", "All 3 test functions of the report took 0 minutes."]


def test_whole_runs_and_other_files_take_turns_the_longest_of_each_first() -> None:
    seconds = {"hosts/a": 60.0, "acceptance/b": 40.0, "unit/c": 0.0, "contract/d": 10.0, "integration/e": 20.0}
    order = conftest.in_turns([Path(name) for name in seconds], lambda path: seconds[str(path)])
    # Before b lie 60 % of the whole runs, before d two thirds of the others.
    assert [str(path) for path in order] == ["hosts/a", "integration/e", "acceptance/b", "contract/d", "unit/c"]
    assert conftest.in_turns([Path("unit/c")], lambda path: 0.0) == [Path("unit/c")]
