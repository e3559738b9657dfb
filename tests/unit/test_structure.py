"""What holds for the repository as a whole: import arrows, light imports, sizes, examples, links, what is tracked."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard

import pytest

from jobs.planning import plan_batching
from jobs.spec.command import CommandSpec
from jobs.spec.finetune import Spec
from jobs.spec.load import load_job_spec

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("cluster", "jobs", "orchestrator")
MAY_IMPORT = {"cluster": (), "jobs": ("cluster",), "orchestrator": ("cluster", "jobs")}

# Where a package that is slow to import may be named at all. The light half runs on a laptop that has none of them.
TRAINING = ("jobs/data/", "jobs/training/")
# Imported late by others.
WITH_TORCH = (
    "jobs/drivers/finetune/torchrun_driver.py",
    "jobs/preflight/cpu_speed.py",
    "jobs/preflight/dry_run.py",
    "jobs/preflight/model_trace.py",
    "jobs/preflight/traced_pass.py",
    "jobs/preflight/tracker.py",
)
TUNING = ("jobs/search/report/page.py", "jobs/search/tuning/")
SERVING = ("orchestrator/http/", "orchestrator/server/", "orchestrator/store/")
HOMES = {
    "ray": (*TRAINING, *TUNING, "cluster/ray/", "jobs/drivers/command/ray_gang.py"),
    "optuna": TUNING,
    "torch": (
        *TRAINING,
        *WITH_TORCH,
        "jobs/search/tuning/proposing.py",
    ),
    "deepspeed": TRAINING,
    "transformers": (*TRAINING, "jobs/model_files/tokenizer.py", "jobs/preflight/traced_pass.py"),
    "accelerate": TRAINING,
    "safetensors": TRAINING,
    "pyarrow": TRAINING,
    "huggingface_hub": (*TRAINING, "jobs/model_files/directory.py"),
    "fastapi": SERVING,
    "starlette": SERVING,
    "uvicorn": SERVING,
    "prometheus_client": SERVING,
    "sqlalchemy": SERVING,
    "alembic": SERVING,
    "pandas": (*TRAINING, "orchestrator/client/handle.py"),
}
LIGHT_MODULES = (
    "orchestrator.cli.app",
    "jobs.spec.load",
    "jobs.preflight.validate",
    "jobs.finetune",
    "jobs.drivers.attempt",
    "jobs.compare",
    "jobs.sweep",
    "cluster.ray.connection",
    "cluster.ray.backend",
)
READS_THE_ENVIRONMENT = "cluster/settings.py"
MAY_SET_THE_ENVIRONMENT = ("jobs/training/model/engine.py", "jobs/data/preparation/ray_data.py")
MOST_LINES = 400
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/**/*.md", "bench/**/*.md", "docker/**/*.md")
BINARY_SUFFIXES = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".gguf", ".npy", ".npz", ".arrow")
MACHINE_PATH = re.compile(r"(?<![\w.:/-])/(?:work|root|mnt|Users|home/\w+)/[\w.]")


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports_of(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Dotted name and line of every import, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or ""), node.lineno


def imports_at_module_level(statements: list[ast.stmt]) -> Iterator[tuple[str, int]]:
    """Imports that run when the module is imported; those in functions and under `if TYPE_CHECKING` do not."""
    for statement in statements:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            yield from imports_of(statement)
        elif isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test):
            yield from imports_at_module_level(statement.orelse)
        elif not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            for field in ("body", "orelse", "finalbody"):
                yield from imports_at_module_level(getattr(statement, field, []))
            for handler in getattr(statement, "handlers", []):
                yield from imports_at_module_level(handler.body)


def arrow_problems(room: str, text: str) -> list[str]:
    """Imports of a file that point the wrong way, or that hide where they point."""
    forbidden = [other for other in ROOMS if other != room and other not in MAY_IMPORT[room]]
    return [
        f"line {line}: imports {name}"
        for name, line in imports_of(ast.parse(text))
        if name.startswith(".") or name.split(".")[0] in forbidden
    ]


def home_problems(name: str, text: str) -> list[str]:
    return [
        f"line {line}: imports {imported}, which belongs in {', '.join(HOMES[package])}"
        for imported, line in imports_of(ast.parse(text))
        if (package := imported.split(".")[0]) in HOMES and not name.startswith(HOMES[package])
    ]


def environment_problems(name: str, text: str) -> list[str]:
    """Uses of the environment, by whatever name it is reached; setting a variable is allowed in a few files."""
    tree = ast.parse(text)
    set_here = {
        id(inner)
        for node in ast.walk(tree)
        for inner in ast.walk(node)
        if name in MAY_SET_THE_ENVIRONMENT and _sets_a_variable(node)
    }
    return [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(tree)
        if _reaches_the_environment(node) and id(node) not in set_here
    ]


def _sets_a_variable(node: ast.AST) -> bool:
    if isinstance(node, ast.Subscript):
        return isinstance(node.ctx, ast.Store)
    return isinstance(node, ast.Expr) and ast.unparse(node).startswith("os.environ.setdefault(")


def _reaches_the_environment(node: ast.AST) -> TypeGuard[ast.Attribute | ast.ImportFrom]:
    names = ("environ", "environb", "getenv", "getenvb")
    if isinstance(node, ast.Attribute):
        return node.attr in names and isinstance(node.value, ast.Name) and node.value.id == "os"
    return isinstance(node, ast.ImportFrom) and node.module == "os" and any(one.name in names for one in node.names)


@pytest.mark.parametrize("room", ROOMS)
def test_imports_follow_the_arrows(room: str) -> None:
    files = sources(room)
    assert len(files) > 3
    wrong = {name_of(path): found for path in files if (found := arrow_problems(room, path.read_text()))}
    assert not wrong


def test_arrow_check_sees_wrong_and_relative_imports() -> None:
    assert arrow_problems("cluster", "from jobs.spec.finetune import Spec")
    assert arrow_problems("jobs", "def f():\n    import orchestrator.cli.app")
    assert arrow_problems("jobs", "from ..orchestrator import cli")
    assert not arrow_problems("orchestrator", "import jobs.spec.finetune\nfrom cluster import errors")


def test_heavy_packages_are_named_only_where_they_belong() -> None:
    wrong = {
        name_of(path): found for path in sources(*ROOMS) if (found := home_problems(name_of(path), path.read_text()))
    }
    assert not wrong


def test_home_check_sees_a_heavy_import_inside_a_function() -> None:
    assert home_problems("jobs/spec/finetune.py", "def f():\n    from torch import nn")
    assert home_problems("cluster/capacity/feasibility.py", "import ray.data")
    assert not home_problems("cluster/ray/connection.py", "import ray")


def test_no_heavy_package_is_imported_at_module_level_outside_of_training() -> None:
    wrong = [
        f"{name_of(path)}:{line}: {name}"
        for path in sources(*ROOMS)
        if not name_of(path).startswith((*TRAINING, *TUNING, *WITH_TORCH))
        for name, line in imports_at_module_level(ast.parse(path.read_text()).body)
        if name.split(".")[0] in HOMES and not name_of(path).startswith(SERVING)
    ]
    assert not wrong


def test_module_level_check_looks_into_try_and_class_but_not_into_functions() -> None:
    def found(text: str) -> list[str]:
        return [name for name, _ in imports_at_module_level(ast.parse(text).body)]

    assert found("try:\n    import ray\nexcept ImportError:\n    import torch") == ["ray", "torch"]
    assert found("class A:\n    import ray\n    def f(self):\n        import torch") == ["ray"]
    assert found("if TYPE_CHECKING:\n    import torch\nelse:\n    import ray") == ["ray"]


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_light_module_imports_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {tuple(HOMES)!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_one_file_reads_the_environment() -> None:
    wrong = {
        name_of(path): found
        for path in sources(*ROOMS)
        if name_of(path) != READS_THE_ENVIRONMENT and (found := environment_problems(name_of(path), path.read_text()))
    }
    assert not wrong


def test_environment_check_tells_setting_from_reading() -> None:
    sets = 'import os\nos.environ["A"] = "1"\nos.environ.setdefault("B", "2")'
    assert environment_problems("jobs/spec/load.py", sets)
    assert not environment_problems(MAY_SET_THE_ENVIRONMENT[0], sets)
    for reads in ('os.environ["A"]', 'os.getenv("A")', "x = os.environ", "from os import environ as e"):
        assert environment_problems(MAY_SET_THE_ENVIRONMENT[0], f"import os\n{reads}")


def test_no_source_file_is_long() -> None:
    long = {
        name_of(path): count
        for path in sources(*ROOMS, "examples", "bench", "tests")
        if (count := len(path.read_text().splitlines())) > MOST_LINES
    }
    assert not long


def test_no_script_hides_a_module_of_the_standard_library_from_those_beside_it() -> None:
    found = [path for folder in ("bench", "examples", "tests/support") for path in (ROOT / folder).glob("*.py")]
    assert len(found) > 10
    assert [name_of(path) for path in found if path.stem in sys.stdlib_module_names] == []


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: str(path.name))
def test_example_spec_loads(path: Path) -> None:
    spec = load_job_spec(str(path))
    if isinstance(spec, CommandSpec):
        assert spec.command
    else:
        assert isinstance(spec, Spec) and plan_batching(spec).rows > 0


def test_there_are_example_specs() -> None:
    assert len(list((ROOT / "examples").glob("*.yaml"))) >= 3


def documents() -> list[Path]:
    return sorted({path for pattern in DOCUMENTS for path in ROOT.glob(pattern)})


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))


def anchors_of(text: str) -> set[str]:
    """Anchors as GitHub makes them from headings."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#{1,6} +(.+?) *#*$", prose, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def link_problems(document: Path) -> list[str]:
    problems = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(document.read_text())):
        if "://" in target or target.startswith("mailto:"):
            continue
        file, _, anchor = target.partition("#")
        path = (document.parent / file).resolve() if file else document
        if not path.exists():
            problems.append(f"{target}: no such file")
        elif anchor and anchor not in anchors_of(path.read_text()):
            problems.append(f"{target}: no such heading")
    return problems


def test_links_in_documents_lead_somewhere() -> None:
    assert len(documents()) > 5
    assert not {name_of(path): found for path in documents() if (found := link_problems(path))}


def test_link_check_sees_a_missing_file_and_a_missing_heading(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Some title\n[a](#some-title) [b](gone.md) [c](#gone) [d](https://example.org)\n`[e](code.md)`\n")
    assert link_problems(page) == ["gone.md: no such file", "#gone: no such heading"]


def test_every_decision_is_listed() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = (folder / "README.md").read_text()
    pages = sorted(path.name for path in folder.glob("[0-9]*.md"))
    assert pages
    assert [page for page in pages if f"({page})" not in listed] == []


def makefile_targets() -> set[str]:
    return set(re.findall(r"^([a-z][\w-]*):(?!=)", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def test_make_targets_that_documents_name_exist() -> None:
    # Only what is marked as code: prose may well "make sure".
    code = re.compile(r"`make ([a-z][\w-]*)`|^(?:\$ )?make ([a-z][\w-]*)", flags=re.MULTILINE)
    named = {one or other: name_of(path) for path in documents() for one, other in code.findall(path.read_text())}
    assert "demo" in named
    assert {target: where for target, where in named.items() if target not in makefile_targets()} == {}


def tracked() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("no git checkout")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_no_tracked_file_names_a_path_of_one_machine() -> None:
    wrong = {}
    for path in tracked():
        content = path.read_bytes()
        if path == Path(__file__).resolve() or b"\0" in content:
            continue
        if found := MACHINE_PATH.findall(content.decode(errors="replace")):
            wrong[name_of(path)] = found[:3]
    assert not wrong


@pytest.mark.parametrize(
    ("text", "is_path"),
    [
        ("see /work/x", True),
        ('"/root/.cache"', True),
        ("/home/me/x", True),
        ("a/work/b", False),
        ("s3://b/root/x", False),
    ],
)
def test_machine_path_is_told_from_other_text(text: str, is_path: bool) -> None:
    assert bool(MACHINE_PATH.search(text)) is is_path


def test_no_weights_or_pickles_are_tracked() -> None:
    """But for the rows of some invented sentences that an older release has prepared, 10 kB in all."""
    found = [name_of(path) for path in tracked() if path.suffix in BINARY_SUFFIXES]
    assert [name for name in found if not re.match(r"tests/contract/files/.*\.arrow$", name)] == []
    assert [name_of(path) for path in tracked() if path.stat().st_size > 1_000_000] == []


@pytest.mark.parametrize("tier", ["unit", "integration", "contract"])
def test_folders_of_tests_are_packages(tier: str) -> None:
    """Without an `__init__.py`, pytest puts the folder above on sys.path: tests/unit/jobs would hide the package."""
    folders = {path.parent for path in sources(f"tests/{tier}")}
    assert len(folders) > 4
    assert [name_of(folder) for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


def test_unit_tests_stand_in_the_folders_of_the_rooms() -> None:
    unit = ROOT / "tests" / "unit"
    folders = {path.parent.relative_to(unit) for path in sources("tests/unit")} - {Path(".")}
    assert len(folders) > 40
    assert [folder.as_posix() for folder in sorted(folders) if not (ROOT / folder / "__init__.py").exists()] == []
