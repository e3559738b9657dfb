"""Functions of the user's own as formats: imported in workers only, and readable about what goes wrong in them."""

import importlib.util
import json
import pathlib
import sys
from typing import Any

import numpy as np
import pytest

from cluster.errors import DataError, InputError
from jobs.data.preparation.fingerprint import fingerprint
from jobs.data.preparation.prepare import prepare
from jobs.data.prepared import Prepared
from jobs.data.sources.user_code import function_of, read_code
from jobs.model_files.tokenizer import load_tokenizer
from jobs.preflight.validate import validate
from jobs.spec.finetune import Spec
from tests.integration.jobs.data.test_prepare import model_dir, quiet  # noqa: F401 - a fixture
from tests.support.textdata import text_spec, write_texts

FORMATS = """
def upper(row):
    return {"text": row["text"].upper()}

def several(row):
    number = int(row["text"].split()[0].split("-")[1])
    if number % 3 == 0:
        return None
    return [{"text": f"{number} first"}, {"prompt": f"{number} is ", "completion": "second"}]

def picky(row):
    if row["text"].startswith("0-17 "):
        raise ValueError("seventeen is not for me")
    return {"text": row["text"]}

def refuses(row):
    return _inner(row)

def _inner(row):
    return row["nothing"]

def number(row):
    return 7

def wrong_keys(row):
    return {"txt": row["text"]}

def half(row):
    return {"text": None}

def talk(row):
    return {"messages": [{"role": "user", "content": "say"}, {"role": "assistant", "content": row["text"]}]}

def leaves(row):
    raise SystemExit(0)

not_a_function = 3
"""


@pytest.fixture
def job(
    model_dir: str,  # noqa: F811
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Any:
    """A spec with one of the functions; the package lies in the working directory, as with a submitted job."""
    package = tmp_path / "own_formats_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "formats.py").write_text(FORMATS)
    monkeypatch.chdir(tmp_path)
    path = write_texts(tmp_path / "t.jsonl", 200)

    def make(function: str, **data: Any) -> Spec:
        name = function if ":" in function else f"own_formats_package.formats:{function}"
        return text_spec(tmp_path / "out", model_dir, path, format=name, **data)

    return make


def texts_of(prepared: Prepared, model: str) -> list[str]:
    split = prepared.split("train")
    tokenizer = load_tokenizer(model)
    found = []
    for row in split.read_rows(np.arange(len(split))).to_pylist():
        ends = np.cumsum(row["lengths"])
        found += [
            tokenizer.decode(row["input_ids"][end - n : end]) for end, n in zip(ends, row["lengths"], strict=True)
        ]
    return found


@pytest.mark.parametrize("engine", ["plain", "ray"])
def test_a_function_reads_the_records(
    local_ray: None,
    job: Any,
    model_dir: str,  # noqa: F811
    tmp_path: pathlib.Path,
    engine: Any,
) -> None:
    prepared = prepare(job("upper"), model_dir, engine=engine, say=quiet)
    rows = [json.loads(line)["text"].upper() for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert sorted(texts_of(prepared, model_dir)) == sorted(f"{text}<|im_end|>" for text in rows)


def test_a_function_may_leave_records_out_and_make_several_samples(
    job: Any,
    model_dir: str,  # noqa: F811
) -> None:
    prepared = prepare(job("several"), model_dir, engine="plain", say=quiet)
    numbers = [number for number in range(200) if number % 3]
    assert sorted(texts_of(prepared, model_dir)) == sorted(
        [f"{n} first<|im_end|>" for n in numbers] + [f"{n} is second<|im_end|>" for n in numbers]
    )
    assert prepared.manifest.records == 200 and prepared.manifest.bad_rows == 0


def test_a_row_for_which_it_raises_is_set_aside_with_the_traceback(
    job: Any,
    model_dir: str,  # noqa: F811
    tmp_path: pathlib.Path,
) -> None:
    prepare(job("picky"), model_dir, engine="plain", say=quiet)
    (listed,) = (tmp_path / "out").glob("prepared/*/bad_rows.jsonl")
    (row,) = map(json.loads, listed.read_text().splitlines())
    assert row["line"] == 18 and row["reason"].startswith(
        "own_formats_package.formats:picky raised ValueError: seventeen is not for me\n"
    )
    assert 'formats.py", line 13, in picky' in row["reason"]


@pytest.mark.parametrize("engine", ["plain", "ray"])
def test_a_function_that_always_raises_stops_the_job_with_row_and_traceback(
    local_ray: None,
    job: Any,
    model_dir: str,  # noqa: F811
    engine: Any,
) -> None:
    with pytest.raises(DataError, match=r"200 of 200 records \(100\.0%\) of data\.train cannot be used") as caught:
        prepare(job("refuses"), model_dir, engine=engine, say=quiet)
    message = str(caught.value)
    assert "t.jsonl:1: own_formats_package.formats:refuses raised KeyError: 'nothing'" in message
    assert "line 20, in _inner\n" in message and 'return row["nothing"]' in message
    assert message.count("raised KeyError") == 10 and message.count("in _inner") == 1


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("leaves", r"200 of 200 records .*\n.*t\.jsonl:1: .*:leaves raised SystemExit: 0"),
        ("number", r"t\.jsonl:1: .*:number returned a int, expected a dict, a list of dicts, or None"),
        ("wrong_keys", r"t\.jsonl:1: .*:wrong_keys returned keys \['txt'\], expected 'messages', or 'prompt'"),
        ("half", r"200 of 200 records .*\n.*t\.jsonl:1: .*:half returned: 'text' is null"),
        ("not_a_function", r"data\.format .*:not_a_function is a int, not a function"),
        ("json:nothing", r"data\.format json:nothing cannot be imported on a worker: AttributeError"),
        ("no_such_package.formats:f", r"cannot be imported on a worker: ModuleNotFoundError: No module named"),
    ],
)
def test_what_is_no_usable_function_is_told(
    job: Any,
    model_dir: str,  # noqa: F811
    function: str,
    message: str,
) -> None:
    with pytest.raises(DataError, match=message):
        prepare(job(function), model_dir, engine="plain", say=quiet)


def test_a_function_that_is_not_there_is_refused_before_anything_starts(job: Any) -> None:
    with pytest.raises(InputError, match=r"data\.format: .*formats\.py has no uper; did you mean upper\?"):
        validate(job("uper"))
    with pytest.raises(InputError, match=r"data\.format: there is no module own_formats_package\.nowhere"):
        validate(job("own_formats_package.nowhere:f"))


def test_another_code_of_the_function_gives_another_fingerprint(
    job: Any,
    model_dir: str,  # noqa: F811
    tmp_path: pathlib.Path,
) -> None:
    before = fingerprint(job("upper"), model_dir)[0]
    assert fingerprint(job("upper"), model_dir)[0] == before
    with (tmp_path / "own_formats_package" / "formats.py").open("a") as file:
        file.write("\n# changed\n")
    assert fingerprint(job("upper"), model_dir)[0] != before


def test_a_function_may_give_dialogues(job: Any, model_dir: str) -> None:  # noqa: F811
    prepared = prepare(job("talk"), model_dir, engine="plain", say=quiet)
    assert all("<|im_start|>assistant\n0-" in text for text in texts_of(prepared, model_dir))


class _EditableFinder:
    """As `pip install -e` writes it for packages that lie in no directory of the path: a finder with a table."""

    def __init__(self, folders: dict[str, pathlib.Path]) -> None:
        self._folders = folders

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name not in self._folders:
            return None
        folder = self._folders[name]
        return importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )


def test_a_function_of_an_editable_package_is_part_of_the_fingerprint_and_travels_to_workers(
    model_dir: str,  # noqa: F811
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = tmp_path / "source"  # another name than that of the package
    source.mkdir()
    (source / "__init__.py").write_text("")
    (source / "formats.py").write_text(
        "from own_editable.inner import word\n\ndef f(row):\n    return {'text': word}\n"
    )
    (source / "inner.py").write_text("word = 'before'\n")
    finder = _EditableFinder({"own_editable": source})
    monkeypatch.setattr("sys.meta_path", [*sys.meta_path, finder])
    path = write_texts(tmp_path / "t.jsonl", 20)
    spec = text_spec(tmp_path / "out", model_dir, path, format="own_editable.formats:f")
    first = fingerprint(spec, model_dir)
    (source / "inner.py").write_text("word = 'afterwards'\n")
    assert fingerprint(spec, model_dir) != first
    code = read_code("own_editable.formats:f")
    monkeypatch.setattr("sys.meta_path", [one for one in sys.meta_path if one is not finder])  # another host
    assert function_of(code)({}) == {"text": "afterwards"}


def test_a_change_of_code_that_is_too_large_to_send_counts(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.data.sources.user_code._MOST_BYTES", 1000)
    monkeypatch.chdir(tmp_path)
    package = tmp_path / "own_large"
    (package / "env").mkdir(parents=True)
    (package / "env" / "pyvenv.cfg").write_text("")
    (package / "__init__.py").write_text("")
    (package / "formats.py").write_text("def f(row):\n    return row\n")
    small = read_code("own_large.formats:f")
    (package / "env" / "other.py").write_text("x = 1\n" * 1000)
    assert read_code("own_large.formats:f") == small and small.files, "a virtual environment is not the user's code"
    (package / "data.py").write_text("x = 1\n" * 1000)
    large = read_code("own_large.formats:f")
    (package / "formats.py").write_text("def f(row):\n    return None\n")
    changed = read_code("own_large.formats:f")
    assert not large.files and not changed.files and len({small.digest, large.digest, changed.digest}) == 3
    assert function_of(changed)({}) is None
