"""Finds the characters of a rendered dialogue that the assistant wrote, if the template does not mark them. Pure."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from jobs.data.sources.bad_records import Rejected
from jobs.data.sources.records import is_unicode

Turn = dict[str, Any]  # role and content, and what else the template reads
Span = tuple[int, int]  # characters [start, end) of the rendered dialogue
Render = Callable[[Sequence[Turn], bool], str]  # (turns, whether to open an assistant turn at the end) -> text

REFUSED: Final = "the chat template refuses it"
PROBE: Final = "zqx"  # a text that no template writes by itself
_PAIR: Final[list[Turn]] = [{"role": "user", "content": "q"}, {"role": "assistant", "content": PROBE}]


@dataclass(frozen=True)
class Frame:
    """The text that a template writes around every answer: before it, and after its last character."""

    header: str
    end: str


def frame_of(render: Render, ends: tuple[str, ...]) -> Frame | None:
    """Find the frame of a template from a dialogue of two turns; None if it cannot be identified."""
    question, answer = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
    try:
        whole, [(start, stop)] = assistant_spans([question, answer], [1], render, ends)
        header = rendered([question], render, True).removeprefix(rendered([question], render, False))
    except Rejected:
        return None
    end = whole[start + 1 : stop]
    framed = whole[:start].endswith(header) and whole[start : start + 1] == "a" and end.endswith(ends)
    return Frame(header, end) if header and end and framed else None


def framed_spans(turns: Sequence[Turn], render: Render, frame: Frame) -> tuple[str, list[Span]] | None:
    """Compute the result of `assistant_spans` for all answers with one rendering; None if the frame is ambiguous.

    Raises:
        Rejected: the template rejects the dialogue.
    """
    whole = rendered(turns, render, False)
    answers = [_content(turn) for turn in turns if turn["role"] == "assistant"]
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


def assistant_spans(
    turns: Sequence[Turn], numbers: Sequence[int], render: Render, ends: tuple[str, ...]
) -> tuple[str, list[Span]]:
    """Render a dialogue and find the spans that the assistant wrote.

    Turn i is the text that the rendering of turns[:i+1] adds to that of turns[:i] with an assistant header. It ends
    with its end token. Text that the template writes after that, usually a line break, is never generated and left out.

    Args:
        numbers: of the assistant turns to find; the template may render others differently if turns follow.
        ends: the tokenizer's special tokens, which include the end token.

    Returns:
        The rendered dialogue, and one span for each of `numbers`.

    Raises:
        Rejected: the template rejects the dialogue, or renders one of `numbers` differently if other turns follow.
    """
    whole = rendered(turns, render, False)
    spans = []
    for number in numbers:
        after = whole if number + 1 == len(turns) else rendered(turns[: number + 1], render, False)
        start = _start(turns, number, after, render)
        if not whole.startswith(after):
            raise Rejected(
                f"the chat template renders turn {number + 1} differently when others follow it",
                "the chat template renders turn N differently when others follow it",
            )
        spans.append((start, _end(after, start, ends)))
    return whole, spans


def generated_span(
    turns: Sequence[Turn], left_out: Collection[str], render: Render, ends: tuple[str, ...]
) -> tuple[str, list[Span]] | None:
    """Write the last turn after what the model is given when it generates it; None if the template does not allow that.

    This is for templates, as GPT-OSS's, that write earlier reasoning until the last answer follows.

    Args:
        left_out: keys of reasoning.

    Returns:
        As `assistant_spans` for the last turn.

    Raises:
        Rejected: the template rejects the dialogue.
    """
    *earlier, last = turns
    plain = [{key: value for key, value in turn.items() if key not in left_out} for turn in earlier]
    before, whole = rendered(plain, render, True), rendered([*plain, last], render, False)
    if not whole.startswith(before):
        return None
    asked = rendered(earlier, render, True)
    text = asked + whole[len(before) :]
    return text, [(len(asked), _end(text, len(asked), ends))]


@dataclass(frozen=True)
class Opening:
    """The text that a template writes before an answer.

    Attributes:
        header: what it writes before every answer.
        more: what it adds to the header where it asks for an answer; often the beginning of reasoning, or empty.
        is_kept: whether an answer at the end of a dialogue begins with the first word of `more`.
    """

    header: str
    more: str
    is_kept: bool


def opening_of(render: Render) -> Opening:
    """Find what a template writes before answers, from three small dialogues. Raises Rejected."""
    opened, closed = rendered(_PAIR[:1], render, True), rendered(_PAIR[:1], render, False)
    start = len(_beginning(opened, closed))
    last, first = rendered(_PAIR, render, False)[start:], rendered(_PAIR * 2, render, False)[start:]
    header = _beginning(opened[start:], last, first)
    more = opened[start + len(header) :]
    return Opening(header, more, not more.strip() or more.split()[0] in last.partition(PROBE)[0])


def _beginning(*texts: str) -> str:
    """Return what all texts begin with."""
    same = itertools.takewhile(lambda chars: len(set(chars)) == 1, zip(*texts, strict=False))
    return texts[0][: len(list(same))]


def closing_of(render: Render, ends: tuple[str, ...]) -> frozenset[str]:
    """Find the tokens among `ends` that close an answer, in the middle of a dialogue and at its end. Raises Rejected.

    The others may be part of an answer, as the tokens around a call of a function.
    """
    found = set()
    for turns in (_PAIR, _PAIR * 2):
        after = rendered(turns, render, False).partition(PROBE)[2]
        first = min(((at, -len(end), end) for end in ends if (at := after.find(end)) >= 0), default=None)
        found |= {first[2]} if first else set()
    return frozenset(found)


def header_spans(
    turns: Sequence[Turn], render: Render, opening: Opening, closing: Collection[str]
) -> tuple[str, list[Span]] | None:
    """Find the answers by the header that the template writes before each of them; None if that is ambiguous.

    This is for templates that render a turn differently if others follow it. Many of reasoning models write reasoning
    before the last answer only. A span ends with the first closing token after the answer. It does not contain
    `opening.more`, which the model does not generate.

    Raises:
        Rejected: the template rejects the dialogue, or asks for an answer with a text that it leaves out of answers.
    """
    if not opening.is_kept:
        what = "but leaves that out of the answers in dialogues: correct a copy, and give it in model.chat_template"
        raise Rejected(
            f"the chat template asks for an answer with {opening.more!r}, {what}",
            f"the chat template asks for an answer with some text, {what}",
        )
    header = opening.header
    whole = rendered(turns, render, False)
    answers = [turn for turn in turns if turn["role"] == "assistant"]
    if not header or whole.count(header) != len(answers):
        return None
    spans = []
    opens = [part.end() for part in re.finditer(re.escape(header), whole)]
    for turn, start, stop in zip(answers, opens, [*opens[1:], len(whole)], strict=True):
        answer = _content(turn).rpartition("</think>")[2].strip()  # templates write reasoning elsewhere or differently
        place = whole.find(answer, start, stop)
        if place < 0:
            return None
        closes = [(at, at + len(end)) for end in closing if (at := whole.find(end, place + len(answer), stop)) >= 0]
        if not closes and stop < len(whole):
            return None
        begin = start + len(opening.more) if opening.more and whole.startswith(opening.more, start) else start
        spans.append((begin, min(closes)[1] if closes else len(whole.rstrip())))
    return whole, spans


def closed_spans(whole: str, spans: list[Span], ends: tuple[str, ...]) -> tuple[str, list[Span], bool]:
    """Give an end to answers that the template does not close: the token that begins the next turn.

    Args:
        ends: the tokens that end generation.

    Returns:
        The rendered dialogue, the spans, and whether the last answer still has no end, because the text ends there.
    """
    closed, is_open = [], False
    for start, stop in spans:
        if not whole[start:stop].rstrip().endswith(ends):
            following = whole[stop:].lstrip()
            token = max((end for end in ends if following.startswith(end)), key=len, default="")
            is_open = not following
            stop = len(whole) - len(following) + len(token) if token else stop
        closed.append((start, stop))
    return whole, closed, is_open


def rendered(turns: Sequence[Turn], render: Render, header: bool) -> str:
    """Render a dialogue; `header`: also open an assistant turn at its end. Raises Rejected: the template refuses it."""
    try:
        text = render(turns, header)
    except Exception as error:  # a template is a program and may raise anything
        raise Rejected(f"{REFUSED}: {error}", REFUSED) from error
    if not is_unicode(text):
        raise Rejected("the chat template writes half of a surrogate pair, which is no character")
    return text


def _content(turn: Turn) -> str:
    content = turn["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _start(turns: Sequence[Turn], number: int, after: str, render: Render) -> int:
    """Return where assistant turn `number` starts in `after`, the rendering that ends with this turn."""
    if number:
        before = rendered(turns[:number], render, True)
        if not after.startswith(before):
            raise Rejected(
                f"the chat template renders the turns before turn {number + 1} differently when it follows them",
                "the chat template renders the turns before turn N differently when it follows them",
            )
        return len(before)
    # Templates cannot render an empty dialogue. So the header is what they add after this turn to open another one.
    opened = rendered(turns[:1], render, True)
    header = opened.removeprefix(after)
    if not header or header == opened or header not in after:
        raise Rejected("it starts with an assistant turn, whose start the chat template does not show")
    return after.index(header) + len(header)


def _end(text: str, start: int, ends: tuple[str, ...]) -> int:
    kept = text.rstrip()
    return len(kept) if len(kept) > start and kept.endswith(ends) else len(text)


def target_tokens(encoding: Any, tokens: int, spans: Sequence[Span]) -> npt.NDArray[np.bool_]:
    """Mark the tokens that cover at least one character of a span; (tokens,) bool.

    Args:
        encoding: a `tokenizers.Encoding`. Only the borders of spans are looked up in it, because listing the characters
            of all tokens would take longer than everything else here.
    """
    inside = np.zeros(tokens, dtype=bool)
    for low, high in spans:
        chars = range(low, high)
        first, last = _token_at(encoding, chars), _token_at(encoding, chars[::-1])
        if first is None or last is None:
            continue
        while last + 1 < tokens and _covers(encoding.token_to_chars(last + 1), low, high):
            last += 1  # a character may consist of several tokens, of which char_to_token finds the first
        inside[first : last + 1] = True
    return inside


def _token_at(encoding: Any, chars: range) -> int | None:
    """Find the token of the first of these characters that has one; None if the tokenizer drops all of them."""
    return next((place for char in chars if (place := encoding.char_to_token(char)) is not None), None)


def _covers(chars: tuple[int, int] | None, low: int, high: int) -> bool:
    return chars is not None and chars[0] < high and chars[1] > low and chars[1] > chars[0]
