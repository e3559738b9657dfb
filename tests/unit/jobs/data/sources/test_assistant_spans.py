"""Where the assistant's characters are in a rendered dialogue. No transformers: templates are functions here."""

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.data.sources.assistant_spans import Frame, Turn, assistant_spans, frame_of, framed_spans
from jobs.data.sources.bad_records import Rejected

ENDS = ("<|im_start|>", "<|im_end|>", "</s>", "<s>", "<|eot|>", "<|head|>", "<|/head|>")


def chatml(turns: Sequence[Turn], prompt: bool) -> str:
    text = "" if turns[0]["role"] == "system" else "<|im_start|>system\nHelp.<|im_end|>\n"
    text += "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in turns)
    return text + ("<|im_start|>assistant\n" if prompt else "")


def headed(turns: Sequence[Turn], prompt: bool) -> str:
    """Strips what is said, as some templates do."""
    text = "<s>" + "".join(f"<|head|>{turn['role']}<|/head|>\n\n{turn['content'].strip()}<|eot|>" for turn in turns)
    return text + ("<|head|>assistant<|/head|>\n\n" if prompt else "")


def bracketed(turns: Sequence[Turn], prompt: bool) -> str:
    """Has no header of its own for the assistant."""
    text = "<s>"
    for turn in turns:
        text += f" {turn['content']}</s>" if turn["role"] == "assistant" else f"[INST] {turn['content']} [/INST]"
    return text


def endless(turns: Sequence[Turn], prompt: bool) -> str:
    """Writes no end token."""
    return "".join(f"{turn['role']}: {turn['content']}\n" for turn in turns) + ("assistant: " if prompt else "")


said = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["<|im_end|>", "<|im_start|>assistant\n", " x ", "\n", "assistant", "</s>", "<|eot|>\n", "a<|im_end|>"]
    ),
)
dialogues = st.lists(st.tuples(st.sampled_from(["user", "assistant", "system"]), said), min_size=1, max_size=6)


def turns_of(dialogue: list[tuple[str, str]]) -> list[Turn]:
    return [{"role": role, "content": content} for role, content in dialogue]


def _answers(turns: Sequence[Turn]) -> list[int]:
    return [number for number, turn in enumerate(turns) if turn["role"] == "assistant"]


def test_the_frame_is_what_stands_around_an_answer() -> None:
    assert frame_of(chatml, ENDS) == Frame("<|im_start|>assistant\n", "<|im_end|>")
    assert frame_of(headed, ENDS) == Frame("<|head|>assistant<|/head|>\n\n", "<|eot|>")
    assert frame_of(bracketed, ENDS) is None and frame_of(endless, ENDS) is None


@pytest.mark.parametrize("render", [chatml, headed])
@given(dialogues)
def test_one_rendering_tells_what_rendering_turn_by_turn_tells(render: object, dialogue: list[tuple[str, str]]) -> None:
    turns = turns_of(dialogue)
    frame = frame_of(render, ENDS)  # type: ignore[arg-type]
    assert frame is not None
    quick = framed_spans(turns, render, frame)  # type: ignore[arg-type]
    if quick is None:
        return
    assert quick == assistant_spans(turns, _answers(turns), render, ENDS)  # type: ignore[arg-type]


def test_one_rendering_is_enough_for_a_usual_dialogue() -> None:
    turns = turns_of(
        [("system", "Be kind."), ("user", "hi"), ("assistant", " yes \n"), ("user", ""), ("assistant", "")]
    )
    calls = 0

    def render(some: Sequence[Turn], prompt: bool) -> str:
        nonlocal calls
        calls += 1
        return chatml(some, prompt)

    found = framed_spans(turns, render, Frame("<|im_start|>assistant\n", "<|im_end|>"))
    assert found is not None and calls == 1
    whole, spans = found
    assert [whole[start:end] for start, end in spans] == [" yes \n<|im_end|>", "<|im_end|>"]


def test_a_refused_dialogue_is_told_either_way() -> None:
    def refuses(turns: Sequence[Turn], prompt: bool) -> str:
        raise ValueError("roles must alternate")

    turns = turns_of([("user", "a"), ("assistant", "b")])
    calls: list[Callable[[], object]] = [
        lambda: assistant_spans(turns, _answers(turns), refuses, ENDS),
        lambda: framed_spans(turns, refuses, Frame("h", "e")),
    ]
    for call in calls:
        with pytest.raises(Rejected, match="the chat template refuses it: roles must alternate"):
            call()
