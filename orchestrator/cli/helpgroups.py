"""The help of `fleetune` and its groups of commands, as plain text."""

from __future__ import annotations

from typing import Any

import typer
import typer.core


def command_group(**options: Any) -> typer.Typer:
    """With help that looks the same for all groups of commands. `options`: of `typer.Typer`."""
    settings = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
    return typer.Typer(rich_markup_mode=None, context_settings=settings, **options)


class Grouped(typer.core.TyperGroup):
    """A command's group is its `rich_help_panel`; groups come in the order of their first commands."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, Any]]] = {}
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                panel = getattr(command, "rich_help_panel", None)
                groups.setdefault(panel if isinstance(panel, str) else "Commands", []).append((name, command))
        longest = max((len(name) for commands in groups.values() for name, _ in commands), default=0)
        limit = formatter.width - 6 - longest
        for title, commands in groups.items():
            with formatter.section(title):
                rows = [(name.ljust(longest), command.get_short_help_str(limit)) for name, command in commands]
                formatter.write_dl(rows)
