"""Output of commands: progress displays, JSON lists, and errors as messages with an exit code."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import traceback
from collections.abc import Iterable, Iterator
from typing import TextIO

import typer
from pydantic import BaseModel

from cluster.errors import FleetuneError
from jobs.console import user_stream
from jobs.run.progress import NoProgress, PlainProgress, Progress


def progress_of(
    quiet: bool, stream: TextIO | None = None, *, sweep: bool = False, events_only: bool = False
) -> Progress:
    """Return the progress display: a bar or a sweep's table on a terminal, lines elsewhere, nothing if `quiet`.

    The caller must close it: until then, it reports regularly that the run is alive. `stream`: default stdout.
    `events_only`: print a line for each event and nothing else, also on a terminal.
    """
    if quiet:
        return NoProgress()
    stream = stream or users_output()
    if events_only:
        return PlainProgress(stream, background=False)
    if stream.isatty():
        from orchestrator.cli.displays import live

        return live(stream, sweep=sweep)
    return PlainProgress(stream)


def users_output() -> TextIO:
    """Return a stream for the user, also while a run redirects this process's stdout to its log."""
    # A stdout that a test captures has no file descriptor to copy.
    return user_stream() if sys.stdout is sys.__stdout__ else sys.stdout


def json_list(values: Iterable[BaseModel]) -> str:
    """Format values as one JSON list."""
    return f"[{', '.join(value.model_dump_json() for value in values)}]"


@contextlib.contextmanager
def exit_on_error(until_interrupted: int | None = None) -> Iterator[None]:
    """Turn every error into one message and an exit code.

    Args:
        until_interrupted: the exit code after Ctrl-C, for a command that runs until then, without a message. None:
            Ctrl-C interrupts the command, with a message and exit code 130.
    """
    try:
        yield
    except FleetuneError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        if until_interrupted is not None:
            raise typer.Exit(until_interrupted) from None
        _fail("interrupted", 130)
    except BrokenPipeError:  # for example `fleetune runs | head`
        _forget_stdout()
        raise typer.Exit(0) from None
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:
        with tempfile.NamedTemporaryFile("w", prefix="fleetune-error-", suffix=".log", delete=False) as file:
            traceback.print_exc(file=file)
        notes = "".join(f"\n{note}" for note in getattr(error, "__notes__", ()))
        _fail(f"unexpected {type(error).__name__}: {error}{notes}\nThe traceback is in {file.name}", 1)


def echo_if_read(text: str) -> None:
    """Print the result of work that goes on, or whose exit code counts, also if nobody reads the output any more."""
    try:
        typer.echo(text)
    except OSError:
        _forget_stdout()


def _forget_stdout() -> None:
    """Let stdout lead nowhere: what is still buffered would fail again at the end of the process."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _fail(message: str, code: int) -> None:
    typer.echo(f"error:\n{message}" if "\n" in message else f"error: {message}", err=True)
    raise typer.Exit(code)
