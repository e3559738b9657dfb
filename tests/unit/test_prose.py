"""Sentences are for people: no code reads what our own code has written for them.

What a sentence says, a field says too: mistakes have a field and a spec, events have data, bad records a kind, views a
reason and a next step. So a sentence can be rewritten without breaking anything. The check below looks for string
methods, regular expressions and `in` on texts whose names say that they are messages, reasons or errors, and on what is
cut out of these. Texts of libraries, which nobody can change, are read in the places that `READERS` names.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator

import pytest

from tests.unit.test_structure import ROOMS, name_of, sources

READERS = {  # (file, function): whose texts are read there
    ("cluster/text.py", "one_line"): "tracebacks, which Python writes",
    ("jobs/data/sources/records.py", "_csv_rows"): "those of Python's csv module, whose errors have no codes",
    ("jobs/spec/checking/lines.py", "_readable"): "PyYAML's",
    ("jobs/training/faults.py", "fault_of"): "those of torch, CUDA, NCCL and gloo",
    ("jobs/training/faults.py", "_which_memory"): "torch's",
    ("jobs/training/faults.py", "is_of_a_gpu"): "those of CUDA, cuDNN and cuBLAS",
    ("jobs/training/faults.py", "first_line"): "those of torch and gloo, which begin with a place in their source",
    ("jobs/training/model/cpu_optimizer.py", "failure_of"): "a compiler's",
    ("orchestrator/client/connection.py", "_cause"): "those of the operating system and of OpenSSL, through httpx",
    ("orchestrator/client/connection.py", "_no_server"): "OpenSSL's",
    ("orchestrator/http/errors.py", "_lower"): "pydantic's, which puts words of its own before ours",
}

_PROSE = {  # names of texts for people: of variables, and of attributes
    *("advice", "cause", "detail", "details", "explanation", "hint", "message", "messages", "note", "notes", "problem"),
    *("problems", "reason", "reasons", "said", "sentence", "title", "warning", "warnings", "why", "words"),
}
_ERRORS = {"err", "error", "exc", "exception", "failure", "problem", "refused", "reason", "wrong"}  # in `str(error)`
_TEXTS = {*_PROSE, "text"}  # of attributes: a variable of that name is mostly a file's content
_MAKERS = ("_words", "_text", "did_you_mean")  # ends of the names of functions that write sentences
_FORMATS = re.compile(r"_?format_(?!of$)")  # what other names of such functions begin with; `format_of` is that of data
_METHODS = {
    *("endswith", "find", "index", "partition", "removeprefix", "removesuffix", "rpartition", "rsplit", "split"),
    *("splitlines", "startswith"),
}
_CUTS = {"casefold", "lower", "lstrip", "rstrip", "strip"}  # what they give is as much a text for people
_SEARCHES = {"findall", "finditer", "fullmatch", "match", "search", "split", "sub"}


class _Function(ast.NodeVisitor):
    """The places of one function, or of a module outside of its functions, that read a text for people."""

    def __init__(self, body: list[ast.stmt]) -> None:
        self._body, self._names = body, set[str]()
        self.found = list[tuple[int, str]]()

    def look(self) -> list[tuple[int, str]]:
        known = -1
        while known < len(self._names):  # until no more names stand for parts of such texts
            known, self.found = len(self._names), []
            for statement in self._body:
                self.visit(statement)
        return self.found

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """Functions inside are looked at by themselves."""

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        """The same."""

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        """The same."""

    def visit_Assign(self, node: ast.Assign) -> None:
        self._take(node.targets, node.value)
        self.generic_visit(node)

    def visit_For(self, node: ast.For) -> None:
        self._take([node.target], node.iter)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        self._take([node.target], node.iter)
        self.generic_visit(node)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self._take([node.target], node.value)
        self.generic_visit(node)

    def _take(self, targets: list[ast.expr], value: ast.expr) -> None:
        if self._is_cut(value) or self._is_prose(value):
            self._names |= {one.id for target in targets for one in ast.walk(target) if isinstance(one, ast.Name)}

    def _is_cut(self, node: ast.expr) -> bool:
        """Whether an expression gives parts of a text for people."""
        if isinstance(node, ast.Subscript):
            return self._is_cut(node.value)
        if isinstance(node, ast.BoolOp):
            return any(map(self._is_cut, node.values))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            return node.func.attr in _METHODS | _CUTS and self._is_prose(node.func.value)
        return False

    def _is_prose(self, node: ast.expr) -> bool:
        if isinstance(node, ast.Name):
            return node.id in _PROSE or node.id in self._names
        if isinstance(node, ast.Attribute):
            return node.attr in _TEXTS
        if isinstance(node, ast.Subscript):
            return self._is_prose(node.value)
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func).rpartition(".")[2]
            if name == "str":
                return any(ast.unparse(one).rpartition(".")[2] in _ERRORS | self._names for one in node.args)
            return name.strip("_").endswith(_MAKERS) or bool(_FORMATS.match(name)) or self._is_cut(node)
        return False

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Attribute):
            asks = node.func.attr in _METHODS and any(map(_is_written, node.args)) and self._is_prose(node.func.value)
            if asks or (node.func.attr in _SEARCHES and any(map(self._is_prose, node.args))):
                self._note(node)
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        for operator, left, right in zip(node.ops, [node.left, *node.comparators], node.comparators, strict=False):
            if isinstance(operator, ast.In | ast.NotIn) and self._is_prose(right) and _is_written(left):
                self._note(node)
            elif isinstance(operator, ast.Eq | ast.NotEq):
                pairs = ((left, right), (right, left))
                if any(self._is_prose(one) and _is_sentence(other) for one, other in pairs):
                    self._note(node)
        self.generic_visit(node)

    def _note(self, node: ast.expr) -> None:
        self.found.append((node.lineno, ast.unparse(node)))


def _is_written(node: ast.expr) -> bool:
    """Whether it is a text with more than space in it, or a name for one."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str | bytes) and bool(node.value.strip())
    if isinstance(node, ast.Tuple):
        return any(map(_is_written, node.elts))
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Name) and node.id.isupper())


def _is_sentence(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value


def reads(tree: ast.Module) -> Iterator[tuple[str, int, str]]:
    """Function, line and code of each place that reads a text for people."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = "" if isinstance(node, ast.Module) else node.name
            yield from ((name, line, code) for line, code in _Function(node.body).look())


def test_no_code_reads_our_own_sentences() -> None:
    found = [(name_of(path), *one) for path in sources(*ROOMS) for one in reads(ast.parse(path.read_text()))]
    wrong = [f"{file}:{line} {code}" for file, function, line, code in found if (file, function) not in READERS]
    assert not wrong, "give what is read here a field of its own:\n" + "\n".join(wrong)
    there = {(file, function) for file, function, _, _ in found}
    assert not READERS.keys() - there, "nothing is read there any more: take these out of READERS"


@pytest.mark.parametrize(
    "code",
    [
        'starts = [line for line in told.text.splitlines() if line.startswith("expected start: ")]',
        'lines[0].partition("; it has been")[0] if (lines := told.text.splitlines()) else ""',
        'raise UnknownJob(str(error).partition(": did you mean")[0])',
        'if "did you mean" in said: return said',
        "found = ASKS.fullmatch(message)",
        'if message.startswith(("submitted by ", "retried by ")): return message',
        'head = re.split(r": |; ", reason.partition(chr(10))[0])[0]',
        'document = isinstance(seen, BadRecord) and seen.reason.startswith("not")',
        "named = str(error) if str(error).startswith('data.') else error",
        "advice = LIST if 'whole' in said else ''",
        'seen = looked.words.removeprefix("all ")',
        'if format_status(run).startswith("lost"): pass',
        "hint = did_you_mean(a, b).removeprefix('; ')",
        "problems = [line for line in str(error).splitlines() if NUMBERED.fullmatch(line)]",
        'first = reason.strip()\nif first.endswith("gone"): pass',
        'if job.message == "its node is gone": pass',
        "ranks = RANK.findall(job.message)",
    ],
)
def test_the_check_finds_what_was_read_before(code: str) -> None:
    body = f"def function():\n{textwrap.indent(code, '    ')}\n"
    assert [function for function, _, _ in reads(ast.parse(body))], code


@pytest.mark.parametrize(
    "code",
    [
        'shown = " ".join(str(error).split())[:200]',
        "first = str(error).splitlines()[0]",
        'if error.mistakes[0].field.startswith("data."): pass',
        'if job.reason in BUDGETS or job.reason == "paused": pass',
        'path = given.removeprefix("file://")',
        'message = message.replace(chr(0), " ")',
    ],
)
def test_showing_a_text_and_reading_a_field_are_fine(code: str) -> None:
    assert not list(reads(ast.parse(code)))
