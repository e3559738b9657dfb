"""Parses YAML and JSON with the line of every value.

YAML follows version 1.2: `1e-5` is a number; `no`, `on`, `1:30` and `2026-01-01` are text. A key that is given twice is
an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import yaml

from cluster.errors import Mistake, SpecError

Path = tuple[str | int, ...]

_NULL, _BOOL, _INT, _FLOAT, _STR = (f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str"))
_LONGEST_SHOWN = 40  # characters of a value in a message
_MOST_REPEATED = 100_000  # values that aliases may repeat; nested aliases of a small file could fill any memory
_RESOLVERS = (
    (_NULL, r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    (_BOOL, r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    (_INT, r"[-+]?(?:0|[1-9][0-9_]{0,99})", list("-+0123456789")),
    (_FLOAT, r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?", list("-+.0123456789")),
    (_FLOAT, r"[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+", list("-+0123456789")),
    (_FLOAT, r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", list("-+.")),
)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own name and shape


for _tag, _pattern, _first in _RESOLVERS:
    _Loader.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), _first)


class Mark(NamedTuple):
    """Where a value is written. Marks of one file are in the order of its lines.

    Attributes:
        source: name of the file as the user gave it, or `--set`; empty: unknown.
        line: counted from 1; 0: the value is not in a line of a file.
    """

    source: str = ""
    line: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source


@dataclass
class Document:
    """A parsed spec: plain values, the place where each of them is written, and the mistakes found so far."""

    value: Any
    marks: dict[Path, Mark] = field(default_factory=dict)
    problems: list[tuple[Mark, Mistake]] = field(default_factory=list)

    def add_problem(self, mark: Mark, message: str, name: str = "") -> None:
        """Add a mistake. `name`: dotted name of the field."""
        self.problems.append((mark, Mistake(message, name, str(mark))))

    def mark(self, path: Path) -> Mark:
        """Return the place of `path`, or of the nearest section around it."""
        return next(self.marks[path[:n]] for n in range(len(path), -1, -1) if path[:n] in self.marks)


def parse(text: str, source: str) -> Document:
    """Parse the text of a spec. `source` is the file's name as the user gave it.

    Raises:
        SpecError: syntax error, with line and column.
    """
    if source.endswith(".json"):
        return _parse_json(text, source)
    return _built(text, source, source)


def parse_value(text: str, source: str) -> Any:
    """Parse the value of one `--set key=value`. Raises SpecError, whose message names `source` as the place."""
    document = _built(text, source, None)
    if document.problems:
        raise _not_readable(source, document.problems[0][1].message)
    return document.value


def _built(text: str, source: str, place: str | None) -> Document:
    document = Document(None, {(): Mark(source)})
    try:
        document.value = _Builder(document, place).build(_compose(text, source), ())
    except RecursionError as error:
        raise _not_readable(source, "nested too deeply") from error
    except _TooMany as error:
        what = f"its aliases repeat more than {_MOST_REPEATED:,} values: use fewer aliases"
        raise _not_readable(source, what) from error
    return document


def _compose(text: str, source: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        raise _not_readable(place, _readable(error)) from error
    except yaml.reader.ReaderError as error:
        raise _not_readable(source, f"this is not YAML: it has {_described(error.character)}") from error


def _not_readable(place: str, message: str) -> SpecError:
    return SpecError.of([Mistake(message, place=place)])


def _described(character: int | str) -> str:
    """Describe a character that YAML cannot have; bytes that are not UTF-8 reach a command line as half characters."""
    code = character if isinstance(character, int) else ord(character[:1] or "\0")
    if 0xDC80 <= code <= 0xDCFF:
        return f"the byte 0x{code - 0xDC00:02x}, which is not UTF-8 text. Rename a file with such a name"
    return f"the character {chr(code)!a}"


def _readable(error: yaml.MarkedYAMLError) -> str:
    problem = str(error.problem)
    if "while scanning an alias" in str(error.context) or "while scanning an alias" in problem:
        return "not YAML: put a value that begins with * in quotes. On a command line: --set 'data.train=\"*.jsonl\"'"
    if "'\\t'" in problem:
        return "a tab cannot indent YAML: use spaces"
    if "mapping values are not allowed" in problem:
        return "not YAML: a second ': ' in one line, or wrong indentation (quote values that contain ': ')"
    if "another document" in problem:
        return "a second YAML document begins here ('---'): a spec is one document"
    if "expected <block end>" in problem or "could not find expected ':'" in problem:
        return f"not YAML: the indentation does not fit the lines above, or a ':' is missing ({problem})"
    return f"not YAML: {problem}" + (f" {error.context}" if error.context else "")


class _TooMany(Exception):
    """Raised while a document is built whose aliases repeat more than _MOST_REPEATED values."""


class _Builder:
    """Turns YAML nodes into plain values and records their places; with `source` None it records none."""

    def __init__(self, document: Document, source: str | None) -> None:
        self._document = document
        self._source = source
        self._open: set[int] = set()
        self._seen = set[int]()
        self._repeated = 0

    def build(self, node: yaml.Node | None, path: Path) -> Any:
        if node is None:
            return None
        self._repeated += id(node) in self._seen
        self._seen.add(id(node))
        if self._repeated > _MOST_REPEATED:
            raise _TooMany
        self._remember(node, path)
        if id(node) in self._open:
            return self._problem(node, "an alias that contains itself")
        self._open.add(id(node))
        try:
            return self._value(node, path)
        finally:
            self._open.discard(id(node))

    def _value(self, node: yaml.Node, path: Path) -> Any:
        plain = yaml.resolver.BaseResolver
        if node.tag not in (*_SCALARS, plain.DEFAULT_MAPPING_TAG, plain.DEFAULT_SEQUENCE_TAG):
            return self._problem(node, f"the YAML tag {node.tag} has no meaning here")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*path, index)) for index, item in enumerate(node.value)]
        make = _SCALARS.get(node.tag)
        if make is None:
            return self._problem(node, f"the YAML tag {node.tag} is for another kind of value")
        if node.tag != _STR and not _fits(node.tag, node.value):  # only an explicit tag may not fit its value
            return self._problem(
                node, f"{json.dumps(node.value[:_LONGEST_SHOWN])} does not fit its YAML tag {node.tag}"
            )
        return make(node.value)

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            if key in result:
                first = self._document.mark((*path, key))
                self._problem(key_node, f"{dotted((*path, key))} is given twice (first at {first})")
                continue
            result[key] = self.build(value_node, (*path, key))
            self._remember(key_node, (*path, key))
        return result

    def _remember(self, node: yaml.Node, path: Path) -> None:
        if self._source is not None and path:
            self._document.marks[path] = Mark(self._source, node.start_mark.line + 1)

    def _problem(self, node: yaml.Node, message: str) -> None:
        self._document.add_problem(Mark(self._source, node.start_mark.line + 1) if self._source else Mark(), message)


def _parse_json(text: str, source: str) -> Document:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise _not_readable(f"{source}:{error.lineno}:{error.colno}", f"not JSON: {error.msg}") from error
    except RecursionError as error:
        raise _not_readable(source, "nested too deeply") from error
    except ValueError as error:  # Python limits the digits of whole numbers that it converts
        raise _not_readable(source, "cannot be read: it has a whole number of thousands of digits") from error
    # JSON is YAML except for tabs and escaped surrogates; a document with these has no line numbers.
    try:
        document = _built(text, source, source)
    except SpecError:
        document = Document(None, {(): Mark(source)})
    document.value = value
    return document


_SCALARS: dict[str, Callable[[str], Any]] = {
    _NULL: lambda text: None,
    _BOOL: lambda text: text.lower() == "true",
    _INT: lambda text: int(text.replace("_", "")),
    _FLOAT: lambda text: float(re.sub(r"\.(inf|nan)", r"\1", text.replace("_", "").lower())),
    _STR: lambda text: text,
}


def _fits(tag: str, text: str) -> bool:
    """Whether a text is a value of a tag; a whole number is also a float."""
    patterns = [pattern for one, pattern, _ in _RESOLVERS if one == tag or (one, tag) == (_INT, _FLOAT)]
    return any(re.fullmatch(pattern, text) for pattern in patterns)


def dotted(path: Path) -> str:
    return ".".join(str(part) for part in path)
