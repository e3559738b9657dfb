"""Logs of programs, read through Ray's dashboard from where the last call ended.

Ray's HTTP API gives a log from its start, or its last lines, but not from a byte on. To start again for each part of a
log would read a log of 1 GiB thousands of times. So the response stays open between two calls, at its place: that of a
program that runs as a stream which Ray continues (`logs/stream`), that of one that has ended as a file (`logs/file`),
which ends. The node's own agent would serve ranges of bytes, but its address is one that programs of the cluster can
change, and the server opens no such address.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from cluster.backend import MAX_OUTPUT_BYTES
from cluster.ray_output import program_chunks

_MOST_OPEN: Final = 32  # Ray answers 100 requests at once
_IDLE_S: Final = 60.0
_AHEAD: Final = 16  # chunks of at most 64 KiB that are read before they are asked for
_CHUNK_BYTES: Final = 1 << 16
_WAITS_S: Final = 0.05  # for what a program that runs may have written; a caller asks again soon
_FIRST_S: Final = 5.0  # for the first bytes of a stream that was just opened


@dataclass(frozen=True)
class ProgramLog:
    """
    Attributes:
        rays_line: a line in the log that Ray has written.
        ended: nothing more is written.
        open: the response of the dashboard (`follow`: one that continues), or None where there is no log.
    """

    submission: str
    rays_line: bytes
    ended: bool
    open: Callable[[bool], Any | None]


class OpenLogs:
    """Thread-safe. Each reader of a log has a response of its own, as long as no more than 32 are open."""

    def __init__(self, most: int = _MOST_OPEN) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._open: list[_Reader] = []  # those that nobody uses now, the longest unused first

    def read(self, log: ProgramLog, after: int) -> bytes:
        """The program's bytes from `after` on, up to 1 MiB. Raises OSError."""
        reader = self._take(log, after)
        if reader is not None:
            try:
                return self._read(reader, after)
            except OSError:  # it was open for too long: once more from the start
                pass
        response = log.open(not log.ended)
        if response is None:
            return b""
        return self._read(_Reader(log, response), after)

    def close(self) -> None:
        with self._lock:
            readers, self._open = self._open, []
        for reader in readers:
            reader.close()

    def _read(self, reader: _Reader, after: int) -> bytes:
        try:
            content = reader.read(after)
        except BaseException:
            reader.close()
            raise
        if reader.over and not reader.ended and not content:  # the stream was cut: the next call opens another one
            reader.close()
        else:
            self._put_back(reader)
        return content

    def _take(self, log: ProgramLog, after: int) -> _Reader | None:
        with self._lock:
            for reader in reversed(self._open):
                if reader.submission == log.submission and reader.ended == log.ended and reader.holds(after):
                    self._open.remove(reader)
                    return reader
        return None

    def _put_back(self, reader: _Reader) -> None:
        now_s = time.monotonic()
        with self._lock:
            reader.used_s = now_s
            self._open.append(reader)
            keep = [one for one in self._open if now_s - one.used_s < _IDLE_S][-self._most :]
            gone = [one for one in self._open if one not in keep]
            self._open = keep
        for one in gone:
            one.close()


class _Reader:
    """One response, and what of it was given last: a caller takes less than it is given, or asks again."""

    def __init__(self, log: ProgramLog, response: Any) -> None:
        self.submission, self.ended = log.submission, log.ended
        self.over = False
        self.used_s = time.monotonic()
        self._response = response
        self._window, self._begin = bytearray(), 0
        self._chunks = program_chunks(response.iter_content(_CHUNK_BYTES), log.rays_line)
        self._pump = None if log.ended else _Pump(self._chunks, response)

    @property
    def end(self) -> int:
        return self._begin + len(self._window)

    def holds(self, after: int) -> bool:
        return self._begin <= after <= self.end

    def read(self, after: int) -> bytes:
        """Raises OSError."""
        while self.end < after + MAX_OUTPUT_BYTES and not self.over:
            chunk = next(self._chunks, None) if self._pump is None else self._pump.next()
            if chunk is None:
                self.over = self._pump is None or self._pump.over
                break
            self._window += chunk
            if self.end <= after:  # on the way there
                self._begin += len(self._window)
                self._window.clear()
        passed = min(max(after - self._begin, 0), len(self._window))
        del self._window[:passed]
        self._begin += passed
        return bytes(self._window[:MAX_OUTPUT_BYTES])

    def close(self) -> None:
        if self._pump is not None:
            self._pump.close()
        else:
            self._response.close()


class _Pump:
    """Reads a response that continues in a thread of its own, because nobody else may wait for it."""

    def __init__(self, chunks: Iterator[bytes], response: Any) -> None:
        self.over = False
        self._chunks, self._response = chunks, response
        self._read: queue.Queue[bytes | OSError | None] = queue.Queue(_AHEAD)
        self._closed = False
        self._patience_s = _FIRST_S
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def next(self) -> bytes | None:
        """None: there is nothing now. Raises OSError."""
        try:
            chunk = self._read.get(timeout=self._patience_s)
        except queue.Empty:
            return None
        self._patience_s = _WAITS_S
        if isinstance(chunk, OSError):
            raise chunk
        self.over = chunk is None
        return chunk

    def close(self) -> None:
        self._closed = True
        with contextlib.suppress(Exception):  # it ends the wait of the thread; a response that has ended refuses
            self._response.raw.shutdown()
        while True:
            try:
                self._read.get_nowait()
            except queue.Empty:
                return

    def _run(self) -> None:
        last: OSError | None = None
        try:
            for chunk in self._chunks:
                if self._closed:
                    return
                self._put(chunk)
        except Exception as error:  # requests' own, or what its libraries raise when the socket is shut down
            last = error if isinstance(error, OSError) else ConnectionError(str(error))
        finally:
            self._put(last)
            self._response.close()

    def _put(self, chunk: bytes | OSError | None) -> None:
        while not self._closed:
            with contextlib.suppress(queue.Full):
                self._read.put(chunk, timeout=1.0)
                return
