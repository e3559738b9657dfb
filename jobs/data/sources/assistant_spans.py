"""Which characters of a rendered dialogue the assistant wrote, where the chat template does not say so. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from jobs.data.sources.bad_rows import Reason

Turn = dict[str, str]
Span = tuple[int, int]  # characters [start, end) of the rendered dialogue
Render = Callable[[Sequence[Turn], bool], str]  # (turns, whether to open an assistant turn at the end) -> text


REFUSED: Final = "the chat template refuses it"


class Unrenderable(Exception):
    """The dialogue cannot be rendered, or the assistant's part of it cannot be told apart. `reason` says why."""

    def __init__(self, text: str, kind: str = "") -> None:
        super().__init__(text)
        self.reason = Reason(text, kind)


@dataclass(frozen=True)
class Frame:
    """What a template writes around every answer: opening it, and after its last character."""

    header: str
    end: str


def frame_of(render: Render, ends: tuple[str, ...]) -> Frame | None:
    """The frame of a template, from a dialogue of two turns; None where it has none that could be told apart."""
    question, answer = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
    try:
        whole, [(start, stop)] = assistant_spans([question, answer], render, ends)
        header = _rendered([question], render, True).removeprefix(_rendered([question], render, False))
    except Unrenderable:
        return None
    end = whole[start + 1 : stop]
    framed = whole[:start].endswith(header) and whole[start] == "a" and end.endswith(ends)
    return Frame(header, end) if header and end and framed else None


def framed_spans(turns: Sequence[Turn], render: Render, frame: Frame) -> tuple[str, list[Span]] | None:
    """What `assistant_spans` gives, from one rendering; None where the frame does not tell.

    Raises:
        Unrenderable: the template refuses the dialogue.
    """
    whole = _rendered(turns, render, False)
    answers = [turn["content"] for turn in turns if turn["role"] == "assistant"]
    if turns[0]["role"] == "assistant" or whole.count(frame.header) != len(answers):
        return None
    spans, place = [], 0
    for answer in answers:
        start = whole.index(frame.header, place) + len(frame.header)
        place = start + len(answer) + len(frame.end)
        if whole[start:place] != answer + frame.end:
            return None
        spans.append((start, place))
    return whole, spans


def assistant_spans(turns: Sequence[Turn], render: Render, ends: tuple[str, ...]) -> tuple[str, list[Span]]:
    """Render a dialogue and find what the assistant wrote in it.

    Turn i is what the rendering of turns[:i+1] adds to that of turns[:i] with the assistant's header. It reaches to its
    end token; what a template writes after that (a line break, mostly) is never generated and not part of it.

    Args:
        ends: the tokenizer's special tokens, of which an end token is one.

    Returns:
        The rendered dialogue, and a span for each assistant turn.

    Raises:
        Unrenderable: the template refuses the dialogue, or renders a turn differently when others follow.
    """
    whole = _rendered(turns, render, False)
    spans = []
    for number, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        after = whole if number + 1 == len(turns) else _rendered(turns[: number + 1], render, False)
        start = _start(turns, number, after, render)
        if not whole.startswith(after):
            raise Unrenderable(
                f"the chat template renders turn {number + 1} differently when others follow it",
                "the chat template renders turn N differently when others follow it",
            )
        spans.append((start, _end(after, start, ends)))
    return whole, spans


def _rendered(turns: Sequence[Turn], render: Render, header: bool) -> str:
    try:
        return render(turns, header)
    except Exception as error:  # a template is a program of its own
        raise Unrenderable(f"{REFUSED}: {error}", REFUSED) from error


def _start(turns: Sequence[Turn], number: int, after: str, render: Render) -> int:
    """Where assistant turn `number` starts in `after`, the rendering up to and with it."""
    if number:
        before = _rendered(turns[:number], render, True)
        if not after.startswith(before):
            raise Unrenderable(
                f"the chat template does not render turn {number + 1} after what it is asked to follow",
                "the chat template does not render turn N after what it is asked to follow",
            )
        return len(before)
    # No template renders an empty dialogue: the header is what it adds behind this turn when asked for another one.
    opened = _rendered(turns[:1], render, True)
    header = opened.removeprefix(after)
    if not header or header == opened or header not in after:
        raise Unrenderable("it starts with an assistant turn, whose start the chat template does not show")
    return after.index(header) + len(header)


def _end(text: str, start: int, ends: tuple[str, ...]) -> int:
    kept = text.rstrip()
    return len(kept) if len(kept) > start and kept.endswith(ends) else len(text)


def target_tokens(encoding: Any, tokens: int, spans: Sequence[Span]) -> npt.NDArray[np.bool_]:
    """Which tokens cover at least one character of a span; (tokens,) bool.

    Args:
        encoding: a `tokenizers.Encoding`. It is asked for the borders of the spans only: to list the characters of all
            tokens takes longer than everything else here.
    """
    inside = np.zeros(tokens, dtype=bool)
    for low, high in spans:
        first = _token_at(encoding, low, high)
        if first is None:
            continue
        last = next(
            place for char in range(high - 1, low - 1, -1) if (place := encoding.char_to_token(char)) is not None
        )
        while last + 1 < tokens and _covers(encoding.token_to_chars(last + 1), low, high):
            last += 1  # one character may be several tokens, of which the first was found
        inside[first : last + 1] = True
    return inside


def _token_at(encoding: Any, low: int, high: int) -> int | None:
    """The first token of the characters low..high-1; a tokenizer may leave out some, or all of them."""
    for char in range(low, high):
        place: int | None = encoding.char_to_token(char)
        if place is not None:
            return place
    return None


def _covers(chars: tuple[int, int] | None, low: int, high: int) -> bool:
    return chars is not None and chars[0] < high and chars[1] > low and chars[1] > chars[0]
