"""How the demo makes dialogues out of the corpus."""

from __future__ import annotations

import pytest

from examples.fetch import dialogues, messages_of


def talk(*texts: str) -> list[dict[str, str]]:
    return [{"role": "assistant" if number % 2 else "user", "content": text} for number, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("lines", "kept"),
    [
        (["Hello", "Hi"], 2),
        (["Hello", "Hi", "How are you?", "Fine."], 4),
        (["Hello", "Hi", "How are you?"], 2),
    ],
)
def test_user_and_assistant_take_turns_and_the_assistant_has_the_last(lines: list[object], kept: int) -> None:
    assert messages_of(lines) == talk(*(str(line) for line in lines[:kept]))


@pytest.mark.parametrize(
    "lines", [[], ["Hello"], ["Hello", ""], ["Hello", " "], ["Hello", True], ["In what year?", 1963]]
)
def test_nothing_is_left_of_a_dialogue_without_an_answer_in_text(lines: list[object]) -> None:
    assert messages_of(lines) == []


def test_space_around_a_line_is_cut_off() -> None:
    assert messages_of([" Hello\n", "Hi "]) == talk("Hello", "Hi")


def test_lines_that_are_answers_to_the_first_do_not_take_turns() -> None:
    lines: list[object] = ["Are you sad", "No.", "Should I be?", "No, I am as happy as ever."]
    assert dialogues({"emotion.yml": [lines, ["Alone"]]}) == [talk("Are you sad", str(line)) for line in lines[1:]]
    assert dialogues({"greetings.yml": [lines]}) == [talk(*(str(line) for line in lines))]


def test_each_dialogue_is_there_once_and_only_small_talk() -> None:
    files: dict[str, list[object]] = {
        "coding.yml": [["Sort a list", "sorted(a)"]],
        "greetings.yml": [["Hello", "Hi"], ["Hello", "Greetings!"], ["Hello", "Hi "]],
        "psychology.yml": ["a text, not a list", [], ["Hello", "Hi"]],
    }
    assert dialogues(files) == [talk("Hello", "Hi"), talk("Hello", "Greetings!")]
