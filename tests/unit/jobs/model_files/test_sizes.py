"""The sizes of a model are found under the names of its type, for plans and for the prior of a search alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.model_files.sizes import WIDTH, size_in
from jobs.search.rules.prior import hidden_size


@pytest.mark.parametrize(
    ("config", "width"),
    [
        ({"hidden_size": 384}, 384),
        ({"n_embd": 768, "text_config": {}}, 768),
        ({"hidden_size": 1, "text_config": {"d_model": 512}}, 512),
        ({"hidden_size": None, "dim": 256}, 256),
        ({"hidden_size": "wide"}, None),
    ],
)
def test_a_width_has_one_of_several_names(tmp_path: Path, config: dict[str, Any], width: int | None) -> None:
    assert size_in(config, WIDTH) == width
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert hidden_size(str(tmp_path)) == width
