"""Output of commands: progress displays, JSON lists, and errors as messages with an exit code."""

from __future__ import annotations

import contextlib
import os
import select
import signal
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

    If nobody reads the output any more, the command ends, without a message, with the exit code that shells use for
    SIGPIPE: 141. The work that it waits for goes on.

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
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _forget_unread_output():  # for example `fleetune runs | head`
            raise typer.Exit(128 + signal.SIGPIPE) from None
        with tempfile.NamedTemporaryFile("w", prefix="fleetune-error-", suffix=".log", delete=False) as file:
            traceback.print_exc(file=file)
        notes = "".join(f"\n{note}" for note in getattr(error, "__notes__", ()))
        _fail(f"unexpected {type(error).__name__}: {error}{notes}\nThe traceback is in {file.name}", 1)


def echo_if_read(text: str) -> None:
    """Print the result of work that goes on, or whose exit code counts, also if nobody reads the output any more."""
    try:
        typer.echo(text)
    except OSError:
        _lead_nowhere(1)


def _forget_unread_output() -> bool:
    """Let stdout and stderr lead nowhere where nobody reads them any more. Returns whether there was such a stream.

    What is still buffered would fail again at the end of the process.
    """
    watched = select.poll()
    for descriptor in (1, 2):
        watched.register(descriptor, 0)  # these two events are always reported
    unread = [descriptor for descriptor, events in watched.poll(0) if events & (select.POLLERR | select.POLLHUP)]
    for descriptor in unread:
        _lead_nowhere(descriptor)
    return bool(unread)


def _lead_nowhere(descriptor: int) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


def _fail(message: str, code: int) -> None:
    try:
        typer.echo(f"error:\n{message}" if "\n" in message else f"error: {message}", err=True)
    except OSError:  # nobody reads it, and the exit code counts all the same
        _lead_nowhere(2)
    raise typer.Exit(code)
