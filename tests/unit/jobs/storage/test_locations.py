"""One allowlist of paths and URLs: all other protocols and every odd spelling are refused before anything is opened."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.registry import known_implementations

from cluster.errors import InputError, SpecError, StorageError
from cluster.settings import extra_protocols, protocols_environment
from jobs.spec.load import load_spec, spec_of
from jobs.storage import files as storage
from jobs.storage import locations as location
from jobs.storage.listing import listing
from jobs.storage.locations import form_problem, is_under, problem
from orchestrator.queue.errors import QueueError
from orchestrator.service.observability.run_files import RunFiles
from orchestrator.service.roots import check_run, outside
from tests.support.queuejobs import job

EVERY = sorted({*fsspec.available_protocols(), *known_implementations, "local", "memory", "data"})
REFUSED = [name for name in EVERY if name not in location.PROTOCOLS]
CHAINED = [f"{name}::{inner}" for name in EVERY for inner in ("file:///etc/passwd", "s3://bucket/key")]
ODD = [
    "S3://bucket/key", "File:///etc/passwd", "FILE:///etc/passwd", "LOCAL:///etc/passwd", "s3:/bucket", "s3:bucket",
    "file:/etc/passwd", "file:etc", "file://host/etc/passwd", "file://localhost/etc", "local:/etc", "data:,secret",
    "data:text/plain;base64,QUJD", " s3://bucket/x", "s3://bucket/x\n", "\ts3://bucket", " /etc/passwd", "/x\0y",
    "s3://bucket/\0", "s3://bucket/a\nb", "s3:\\\\bucket\\x", "s3://bucket\\x", "C:\\data", "C:/data", "c:/x",
    "s3://bucket/../other", "s3://bucket/%2e%2e/other", "s3://bucket/%2E%2E%2Fother", "s3://bucket/a/..",
    "file:///data/../etc", "file:///data/%2e%2e/etc", "s3:///key", "s3://", "://x", "/data/http://host/x",
    "s3://bucket/http://host/x", "s3://key:secret@bucket/x", "s3://bucket:9000/x", "s3://host:80@bucket/x",
    "abfs://container@account.dfs.core.windows.net/x", "az://c@evil.example/x", "gs://user@bucket/x", "x y://host/z",
    "//s3://x", "s3 ://x", "file::/etc", "::", "file:///x::y", "/x::zip",
]  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_no_other_protocol_of_fsspec_is_opened(name: str, tmp_path: Path) -> None:
    for url in (f"{name}://host/path", f"{name}://{tmp_path}", f"{name.upper()}://{tmp_path}"):
        assert problem(url, ()) is not None
        for act in (storage.filesystem, storage.read_bytes, storage.list_names, storage.is_dir, storage.exists):
            with pytest.raises(StorageError):
                act(url)


@pytest.mark.parametrize("url", [*CHAINED, *ODD])
def test_chained_urls_and_odd_spellings_are_refused_wherever_one_comes_in(url: str) -> None:
    assert form_problem(url) is not None
    data, model = {"train": "/d", "format": "text"}, {"path": "/m", "task": "causal-lm"}
    named = ({"storage_path": url}, {"data": {**data, "train": url}}, {"model": {**model, "path": url}})
    for more in named:
        with pytest.raises(SpecError):
            spec_of({"data": data, "model": model, **more})
    acts: list[Any] = [storage.read_bytes, storage.list_names, storage.exists, storage.size, storage.is_dir, listing]
    for act in (*acts, RunFiles.at, lambda at: storage.write_bytes(at, b"x"), storage.remove_dir, storage.remove_file):
        with pytest.raises(StorageError):
            act(url)


def test_what_is_allowed_stays_allowed() -> None:
    for path in (
        "/data/x",
        "runs",
        "./a:b",
        "/a b/*.jsonl",
        "../x",
        "/x/%41",
        "file:///x",
        "org/model",
        "~/x",
        "/a:b/c",
    ):
        assert problem(path, ()) is None, path
    for url in (
        "s3://b/k?x=1",
        "s3a://b",
        "gs://b/*.parquet",
        "gcs://b/x",
        "abfs://c/x",
        "az://c",
        "hf://datasets/o/n@main/x",
    ):
        assert problem(url, ()) is None, url


def test_an_administrator_adds_protocols_but_none_that_reads_local_files_or_wraps_others() -> None:
    given = {"FLEETUNE_PROTOCOLS": "sftp, webdav://"}
    assert extra_protocols(given) == {"sftp", "webdav"} and extra_protocols({}) == frozenset()
    assert protocols_environment(given) == {"FLEETUNE_PROTOCOLS": "sftp,webdav"} and protocols_environment({}) == {}
    assert problem("sftp://host/x", extra_protocols(given)) is None
    assert problem("sftp::file:///etc/passwd", extra_protocols(given)) is not None
    for name in ("local", "simplecache", "reference", "zip", "SFTP", "a::b", "data"):
        with pytest.raises(InputError, match="cannot be allowed"):
            extra_protocols({"FLEETUNE_PROTOCOLS": name})


def test_the_refusal_says_what_is_allowed_and_who_allows_more() -> None:
    with pytest.raises(
        StorageError, match=r"http:// is not allowed\. Allowed are paths and file://, s3://.*FLEETUNE_PROTO"
    ):
        storage.read_bytes("http://host/x")


@pytest.mark.parametrize("query", ["endpoint_url=elsewhere", "versionId=1&anon=true"])
def test_a_url_configures_nothing(query: str) -> None:
    """Another endpoint, other credentials or another mode cannot be given in a URL: a query is part of the key."""
    fs, inner = storage.filesystem(f"s3://bucket/key?{query}")
    assert fs.storage_options == {} and inner == f"bucket/key?{query}"
    assert form_problem("s3://bucket/key?endpoint_url=http://host") is not None


def test_a_specs_file_may_not_smuggle_one_in(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(
        "model: {path: /m, task: causal-lm}\ndata: {train: 'file:/etc/passwd', format: text}\nstorage_path: 'a::b'\n"
    )
    with pytest.raises(
        SpecError, match=r"job\.yaml:2: data\.train.*neither a path nor a URL[\s\S]*job\.yaml:3: storage_path"
    ):
        load_spec(str(tmp_path / "job.yaml"))


ROOTS = ("/shared/team-a", "s3://bucket/team-a/", "gs://own")


@pytest.mark.parametrize(
    ("path", "inside"),
    [
        ("/shared/team-a", True), ("/shared/team-a/x/y", True), ("file:///shared/team-a/x", True),
        ("/shared//team-a/./x", True), ("/shared/team-ab", False), ("/shared/team-a/../team-b", False),
        ("/shared", False), ("/", False), ("shared/team-a", False), ("/shared/team*/x", False),
        ("/shared/team-a/*.jsonl", True), ("s3://bucket/team-a", True), ("s3a://bucket/team-a/x", True),
        ("s3://bucket/team-ab/x", False), ("s3://bucket", False), ("s3://bucket2/team-a", False),
        ("s3://bucket//team-a/x", False), ("s3://bucket/team-a/%2e%2e/x", False), ("gcs://own/x", True),
        ("gs://owner/x", False), ("s3://own/x", False), ("/bucket/team-a", False), ("S3://bucket/team-a", False),
        ("simplecache::s3://bucket/team-a/x", False), ("local:///shared/team-a/x", False),
    ],
)  # fmt: skip
def test_roots_are_compared_name_by_name(path: str, inside: bool) -> None:
    assert any(is_under(path, root) for root in ROOTS) is inside
    assert (outside("data.train", path, "a", ROOTS) is None) is inside
    assert outside("data.train", path, "a", None) is None


def test_a_path_outside_of_the_roots_is_refused_with_the_roots() -> None:
    said = str(outside("model.path", "/other/model", "a", ROOTS))
    assert said.startswith("model.path: tenant 'a' may not use /other/model. Give a path or URL under")
    assert "/shared/team-a, s3://bucket/team-a/, gs://own" in said
    assert "no path at all" in str(outside("model.path", "/x", "a", ()))
    with pytest.raises(QueueError, match="the run of job-1 is not read"):
        check_run("job-1", "/other/run", ROOTS)


def test_a_run_in_the_store_from_before_the_allowlist_is_not_read(tmp_path: Path) -> None:
    class NoTenants:
        def tenant(self, name: str) -> None:
            return None

    for run in (f"local://{tmp_path}", f"simplecache::file://{tmp_path}", "http://127.0.0.1:9/run", "memory://run"):
        with pytest.raises(StorageError):
            RunFiles.of(NoTenants(), replace(job(), run=run))  # type: ignore[arg-type]
