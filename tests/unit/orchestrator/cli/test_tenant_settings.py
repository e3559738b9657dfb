"""What `fleetune tenants set` sends."""

from __future__ import annotations

import httpx
import pytest

from cluster.errors import InputError
from orchestrator.api import QuotaSent, QuotaView, RestrictionsSent, Tenants, TenantSent, TenantView
from orchestrator.cli.tenant_settings import put_settings, quotas, settings
from orchestrator.client.connection import Connection
from orchestrator.pages.cluster import format_restrictions
from orchestrator.problem import Problem
from orchestrator.queue.tenants import Restrictions, check_name

NOW = TenantView(
    name="vision",
    weight=3.0,
    guaranteed=(QuotaView(accelerator_type=None, gpus=2),),
    limit=(QuotaView(accelerator_type="A100", gpus=8),),
    running=0,
    queued=0,
    gpus=0,
)
NO_LIMITS = {"max_priority": "none", "max_runtime_s": "none", "roots": ["none"], "secrets": ["none"]}


def test_what_is_left_out_stays() -> None:
    sent = settings(NOW, None, None, ["16"])
    assert (sent.weight, sent.guaranteed, sent.limit) == (
        3.0,
        (QuotaSent(accelerator_type=None, gpus=2),),
        (QuotaSent(accelerator_type=None, gpus=16),),
    )
    assert settings(None, None, None, None).weight == 1.0


@pytest.mark.parametrize("exists", [True, False])
def test_a_change_by_somebody_else_at_the_same_time_is_kept(exists: bool) -> None:
    limited = NOW.model_copy(update={"limit": (QuotaView(accelerator_type=None, gpus=16),), "version": "2"})
    known = iter([[NOW.model_copy(update={"version": "1"})] if exists else [], [limited]])
    versions = list[str]()

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, content=Tenants(tenants=tuple(next(known))).model_dump_json())
        versions.append(request.url.params["version"])
        if versions[-1] != "2":
            return httpx.Response(
                409, content=Problem(error="TenantChanged", message="it was changed").model_dump_json()
            )
        assert request.url.path == "/v1/tenants/vision"
        sent = TenantSent.model_validate_json(request.content)
        assert (sent.weight, sent.limit) == (5.0, (QuotaSent(accelerator_type=None, gpus=16),))
        return httpx.Response(200, content=limited.model_dump_json())

    server = Connection("http://127.0.0.1:1", transport=httpx.MockTransport(answer))
    assert put_settings(server, "vision", lambda now: settings(now, 5.0, None, None)) == limited
    assert versions == ["1" if exists else "", "2"]


def test_quotas_are_of_types_or_of_all_and_none_takes_them_away() -> None:
    assert quotas("limit", ["A100=8", "16"]) == (
        QuotaSent(accelerator_type="A100", gpus=8),
        QuotaSent(accelerator_type=None, gpus=16),
    )
    assert settings(NOW, None, None, ["none"]).limit == ()


@pytest.mark.parametrize(
    "given", [["x"], ["-1"], ["A100="], ["=8"], ["1.5"], ["9999999"], ["8", "9"], ["none", "8"], [""]]
)
def test_what_is_no_quota_is_refused(given: list[str]) -> None:
    with pytest.raises(InputError, match="--limit"):
        quotas("limit", given)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf"), 1e7])
def test_what_is_no_share_is_refused(weight: float) -> None:
    with pytest.raises(InputError, match="--weight"):
        settings(NOW, weight, None, None)


@pytest.mark.parametrize("name", ["", "a b", "-x", "a/b", "a@b", "x" * 101])
def test_what_cannot_be_a_name_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="tenant's name"):
        check_name(name)


def test_limits_that_are_left_out_stay_and_none_takes_one_away() -> None:
    known = Restrictions(max_priority=5, max_queued_jobs=10, roots=("/a",), secrets=("K",), max_runtime_s=60.0)
    now = NOW.model_copy(update={"restrictions": known})
    assert settings(now, 2.0, None, None).restrictions is None
    sent = settings(
        now, None, None, None, {"max_runtime_s": "12h", "max_queued_jobs": "none", "max_gpu_hours_per_month": "1.5"}
    ).restrictions
    assert sent is not None
    assert sent.model_dump() == {
        "max_priority": 5,
        "max_queued_jobs": None,
        "max_runtime_s": 43_200.0,
        "max_gpu_hours_per_month": 1.5,
        "roots": ("/a",),
        "secrets": ("K",),
    }
    nothing = settings(now, None, None, None, NO_LIMITS).restrictions
    assert nothing == RestrictionsSent(max_priority=1000, max_queued_jobs=10)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"max_priority": "1001"}, "--max-priority '1001' is not allowed"),
        ({"max_priority": "high"}, "--max-priority 'high' is neither a whole number nor none"),
        ({"max_queued_jobs": "-1"}, "--max-queued '-1' is not allowed"),
        ({"max_queued_jobs": "1.5"}, "--max-queued '1.5' is neither"),
        ({"max_gpu_hours_per_month": "nan"}, "--max-gpu-hours 'nan' is not allowed"),
        ({"max_gpu_hours_per_month": "inf"}, "--max-gpu-hours 'inf' is not allowed"),
        ({"max_runtime_s": "0h"}, "--max-runtime must be longer than 0, but is '0h'"),
        ({"max_runtime_s": "12"}, "--max-runtime '12' is not a duration"),
        ({"max_runtime_s": "9999999999d"}, "--max-runtime"),
        ({"secrets": ["A B"]}, "--secret 'A B' is not allowed"),
        ({"roots": ["x" * 2001]}, "--root"),
        ({"roots": ["none", "/a"]}, "--root none excludes other values of --root"),
        ({"secrets": ["A", "None"]}, "--secret none excludes other values of --secret"),
    ],
)
def test_what_is_no_limit_is_refused_in_plain_words(limits: dict[str, str | list[str]], words: str) -> None:
    with pytest.raises(InputError, match=words):
        settings(NOW, None, None, None, limits)


def test_what_limits_a_tenant_is_shown() -> None:
    limits = Restrictions(max_queued_jobs=1000, max_gpu_hours_per_month=500.0, roots=("s3://x",), secrets=("K",))
    assert format_restrictions(NOW) == ""
    assert format_restrictions(NOW.model_copy(update={"restrictions": limits, "gpu_hours": 12.5})) == (
        "at most 1,000 queued; 12.5 of 500.0 GPU-hours this month; files under s3://x; secrets K"
    )


def test_a_limit_that_only_a_newer_server_knows_is_ignored() -> None:
    limits = {"max_priority": 3, "roots": ["/a"], "of_a_newer_server": 1}
    sent = NOW.model_dump(mode="json") | {"restrictions": limits}
    assert TenantView.model_validate(sent).restrictions == Restrictions(max_priority=3, roots=("/a",))
