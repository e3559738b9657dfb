"""The rooms of the packages: their size, what their docstrings say, what they import, and their picture."""

from __future__ import annotations

import pytest

from tests import rooms
from tests.rooms import ROOT

MOST_FILES = 15  # of a room


def test_the_picture_and_the_table_of_rooms_are_those_of_the_code() -> None:
    assert not rooms.circle(), "rooms import each other: carry what the lower one needs into it"
    assert rooms.PICTURE.read_text() == rooms.picture(), "python -m tests.rooms draws it again"
    assert rooms.table() in rooms.PAGE.read_text(), "python -m tests.rooms writes it again"


def test_no_modules_import_each_other_in_a_circle_not_even_inside_functions() -> None:
    assert len(rooms.imports()) > 400
    assert rooms.circle_in(rooms.imports()) == [], "carry what both need into a module below them"


def test_circle_check_sees_a_circle_of_three() -> None:
    assert set(rooms.circle_in({"a": "b", "b": "c", "c": "a", "d": "a"})) == {"a", "b", "c"}
    assert rooms.circle_in({"a": "bc", "b": "c"}) == []


def test_every_room_is_small_and_says_where_to_start() -> None:
    for room in rooms.rooms():
        own = [path for path in rooms.files() if path.rpartition("/")[0] == room and not path.endswith("/__init__.py")]
        said = " ".join((ROOT / room / "__init__.py").read_text().split())
        assert len(own) <= MOST_FILES, room
        assert "May import" in said and any(words in said for words in ("Start with", "doors are", "door is")), room


def test_rooms_import_only_what_their_docstrings_allow() -> None:
    allowed = rooms.may_import()
    inner = {room: f"{room}/" for room in rooms.rooms()}  # doors to the rooms inside
    wrong = {
        f"{path} imports {other}"
        for path, imported in rooms.imports().items()
        for room in [path.rpartition("/")[0]]
        for other in imported - allowed[room]
        if not other.startswith(inner[room])
    }
    assert not wrong, "\n".join(sorted(wrong))


def test_a_room_may_import_what_the_rooms_that_it_names_may_import(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is named allows no other file of its room."""
    said = {
        "a": "",
        "a/one": "May import `two`. ",
        "a/two": "May import `three.x`. ",
        "a/three": "May import `b`. ",
        "a/b": "",
    }
    there = ["a/top.py", *(f"{room}/{name}.py" for room in list(said)[1:] for name in ("x", "y"))]
    monkeypatch.setattr(rooms, "rooms", lambda: said)
    monkeypatch.setattr(rooms, "files", lambda: there)
    monkeypatch.setattr(rooms, "_docstring", lambda room: said[room])
    assert rooms.may_import()["a/one"] == {
        *("a/top.py", "a/one/x.py", "a/one/y.py", "a/two/x.py", "a/two/y.py", "a/three/x.py", "a/b/x.py", "a/b/y.py")
    }
    assert rooms.may_import()["a/b"] == {"a/top.py", "a/b/x.py", "a/b/y.py"}
