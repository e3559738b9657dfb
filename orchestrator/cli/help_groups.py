"""The groups of commands of `fleetune`: their help as plain text, and the messages of their errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

import typer
import typer.core

from cluster.text import many, nearest
from orchestrator.cli.output import exit_on_error


class _Once:
    """Refuses an option with a value that is given twice: the last one would replace the others without a word."""

    def parse_args(self: Any, ctx: Any, args: list[str]) -> list[str]:
        if not ctx.resilient_parsing:  # it is, while a shell completes a line
            _, _, given = self.make_parser(ctx).parse_args(list(args))
            for one, times in Counter(given).items():
                if times > 1 and not (one.multiple or one.is_flag):
                    ctx.fail(f"{one.opts[0]} is given {many(times, 'time')}: give it once.")
        found: list[str] = super().parse_args(ctx, args)  # type: ignore[misc]
        return found


class _Command(_Once, typer.core.TyperCommand):
    """A command whose errors become a message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        with exit_on_error():
            return super().invoke(ctx)


class _Group(_Once, typer.core.TyperGroup):
    pass


class _Typer(typer.Typer):
    def command(self, name: str | None = None, **options: Any) -> Any:
        return super().command(name, cls=_Command, **options)


def command_group(**options: Any) -> typer.Typer:
    """Make a group of commands with a common style of help and of errors. `options`: arguments of `typer.Typer`."""
    settings = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
    return _Typer(rich_markup_mode=None, context_settings=settings, **({"cls": _Group} | options))


# Names of similar commands in other tools. Without this, a guess by spelling would turn `train` into `drain`.
SYNONYMS: Final[Mapping[str, str]] = {
    synonym: name
    for name, synonyms in {
        "run": "train finetune fine-tune fit start launch",
        "validate": "check",
        "plan": "estimate",
        "queue": "ls list jobs ps squeue",
        "submit": "sbatch enqueue",
        "cancel": "scancel kill delete rm abort",
        "pause": "suspend",
        "resume": "continue",
        "retry": "restart rerun",
        "logs": "log tail",
        "status": "info describe",
        "why": "explain",
        "serve": "server",
        "save": "checkpoint",
        "runs": "experiments history",
    }.items()
    for synonym in synonyms.split()
}


class Grouped(_Group):
    """Lists commands by `rich_help_panel`. Panels are in the order of their first commands."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and self.get_command(ctx, args[0]) is None and (meant := self._meant(ctx, args[0])):
            ctx.fail(f"No such command {args[0]!r}. Did you mean {meant!r}?")
        return super().resolve_command(ctx, args)

    def _meant(self, ctx: Any, word: str) -> str | None:
        """Return the command meant by a synonym, by the beginning of a name, or by a misspelt name or synonym."""
        names = self.list_commands(ctx)
        meanings = {name: name for name in names}
        meanings |= {other: name for other, name in SYNONYMS.items() if name in meanings}
        if word in meanings:
            return meanings[word]
        if len(longer := [name for name in names if name.startswith(word)]) == 1:
            return longer[0]
        near = nearest(word, meanings)
        return None if near is None else meanings[near]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, Any]]] = {}
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            groups.setdefault(command.rich_help_panel, []).append((name, command))
        longest = max(len(name) for commands in groups.values() for name, _ in commands)
        limit = formatter.width - 6 - longest
        for title, commands in groups.items():
            with formatter.section(title):
                rows = [(name.ljust(longest), command.get_short_help_str(limit)) for name, command in commands]
                formatter.write_dl(rows)
