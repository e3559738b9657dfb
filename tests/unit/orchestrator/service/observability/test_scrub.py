"""What is taken out of text before anybody sees it."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest

from orchestrator.server.console import Output
from orchestrator.service.observability.scrub import HIDDEN, Scrubber, without_secrets

AWKWARD = 'p"a\\ss wörd/1&x'


@pytest.mark.parametrize(
    "form",
    [AWKWARD, json.dumps(AWKWARD), json.dumps(AWKWARD, ensure_ascii=False), repr(AWKWARD), quote(AWKWARD, safe="")],
)
def test_a_secret_is_found_in_whatever_form_it_stands(form: str) -> None:
    text = Scrubber([AWKWARD]).text(f"the value is {form}, and so on")
    assert "ss" not in text.replace("password", "")
    assert HIDDEN in text and text.startswith("the value is ") and text.endswith(", and so on")


def test_one_secret_that_is_part_of_another_leaves_nothing_of_it() -> None:
    assert Scrubber(["hunter", "hunter-and-more"]).text("x hunter-and-more y") == f"x {HIDDEN} y"


def test_each_line_of_a_secret_with_several_is_hidden() -> None:
    key = "-----BEGIN KEY-----\nMIIEvAIBADANBg\nkqhkiG9w0BAQEF\n-----END KEY-----"
    text = Scrubber([key]).text("read: kqhkiG9w0BAQEF (line 3)")
    assert text == f"read: {HIDDEN} (line 3)"


def test_very_short_secrets_hide_nothing() -> None:
    assert Scrubber(["1", ""]).text("step 1 of 10") == "step 1 of 10"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://queue:pw@db/queue", "postgresql://queue:***@db/queue"),
        ("redis://:pw@db", "redis://:***@db"),
        ("s3://bucket/a@b", "s3://bucket/a@b"),
        ("http://head:8265 and me@x.org", "http://head:8265 and me@x.org"),
        ("set ft_abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG now", "set *** now"),
        ("Authorization: Bearer abcdefghijkl", "Authorization: Bearer ***"),
        ("left_over ft_short", "left_over ft_short"),
    ],
)
def test_what_looks_like_a_secret_is_hidden_and_nothing_else(text: str, shown: str) -> None:
    assert Scrubber().text(text) == shown


def test_all_texts_of_a_value_are_looked_at() -> None:
    found = Scrubber(["hunter22"]).value({"a": ["x hunter22", 1, None], "hunter22": {"b": ("hunter22",)}})
    assert found == {"a": [f"x {HIDDEN}", 1, None], HIDDEN: {"b": [HIDDEN]}}


def test_values_of_variables_whose_names_look_secret_are_left_out_of_specs() -> None:
    spec = {
        "name": "token-job",
        "env": {"HF_TOKEN": "a", "AWS_SECRET_KEY": "b", "DB_PASSWORD": "c", "EPOCHS": "3", "MONKEY": "d"},
        "tokenizer": "gpt2",
        "data": [{"env": {"API_KEY": "e"}}],
    }
    assert without_secrets(spec) == {
        "name": "token-job",
        "env": {
            "HF_TOKEN": HIDDEN,
            "AWS_SECRET_KEY": HIDDEN,
            "DB_PASSWORD": HIDDEN,
            "EPOCHS": "3",
            "MONKEY": "d",
        },
        "tokenizer": "gpt2",
        "data": [{"env": {"API_KEY": HIDDEN}}],
    }


def test_escape_codes_of_users_are_written_out_where_a_terminal_shows_them(capsys: pytest.CaptureFixture[str]) -> None:
    """In the server's own log and in messages; the text of a log keeps them, and `fleetune logs` takes them out."""
    hostile = "job\x1b]0;title\x07\x1b[2J\r\x9b31m\x00 is\tfine\n"
    assert Scrubber().line(hostile) == "job\\x1b]0;title\\x07\\x1b[2J\\x0d\\x9b31m\\x00 is\tfine\n"
    assert Scrubber(["hunter22"]).line("\x1bhunter22") == f"\\x1b{HIDDEN}"
    Output(Scrubber()).say(hostile)
    Output(Scrubber()).greet([hostile])
    assert not {"\x1b", "\x07", "\x9b", "\r"} & set(capsys.readouterr().out)
    assert Scrubber().text(hostile) == hostile
