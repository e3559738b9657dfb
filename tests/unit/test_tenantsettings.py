"""What `fleetune tenants set` sends."""

from __future__ import annotations

import pytest

from jobs.errors import InputError
from orchestrator.api import QuotaSent, QuotaView, TenantView
from orchestrator.cli.tenantsettings import check_name, quotas, settings

NOW = TenantView(
    name="vision",
    weight=3.0,
    guaranteed=(QuotaView(accelerator_type=None, gpus=2),),
    limit=(QuotaView(accelerator_type="A100", gpus=8),),
    running=0,
    queued=0,
    gpus=0,
)


def test_what_is_left_out_stays() -> None:
    sent = settings(NOW, None, None, ["16"])
    assert (sent.weight, sent.guaranteed, sent.limit) == (
        3.0,
        (QuotaSent(accelerator_type=None, gpus=2),),
        (QuotaSent(accelerator_type=None, gpus=16),),
    )
    assert settings(None, None, None, None).weight == 1.0


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


@pytest.mark.parametrize("name", ["", "a b", "-x", "a/b", "x" * 101])
def test_what_cannot_be_a_name_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="tenant's name"):
        check_name(name)
