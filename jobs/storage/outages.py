"""Distinguishes errors of file systems: outages, and reads that fail although the file is whole. Pure."""

from __future__ import annotations

import errno
from typing import Final

_PASSING: Final = frozenset(
    {
        errno.EAGAIN,
        errno.EBUSY,  # s3fs raises it if the store asks for fewer requests
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETRESET,
        errno.ENETUNREACH,
        errno.ENOTCONN,  # the process behind a FUSE mount has ended
        errno.EPIPE,
        errno.ESTALE,  # NFS
        errno.ETIMEDOUT,
    }
)
_UNRELATED: Final = frozenset({errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM})
# Parts of class names, because each client of an object store has its own tree of errors.
_WORDS: Final = ("Timeout", "Connect", "NetworkError", "RemoteProtocolError")
_STATUSES: Final = frozenset({408, 425, 429, *range(500, 600)})  # of HTTP


def is_unrelated_to_file(error: BaseException) -> bool:
    """Whether a read has failed for lack of permission, memory or file handles, so that the file may be whole."""
    cause = error.__cause__ or error
    if isinstance(cause, OSError) and cause.errno is not None:
        return cause.errno in _UNRELATED
    return isinstance(cause, (PermissionError, MemoryError))


def is_outage(error: BaseException, local: bool) -> bool:
    """Whether the same call may succeed later, because the storage did not answer or is overloaded.

    An error that does not say it itself is an outage if its cause is one.

    Args:
        local: the file system is mounted. There EIO usually means a broken disk, whereas s3fs raises it, or EREMOTEIO,
            for internal errors of the store.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _PASSING or (error.errno in (errno.EIO, errno.EREMOTEIO) and not local)
    places = ((getattr(error, "response", None), "status_code"), (error, "status"), (error, "code"))
    for status in (getattr(place, name, None) for place, name in places):
        if isinstance(status, int) and status >= 400:
            return status in _STATUSES
    if any(word in cls.__name__ for cls in type(error).__mro__ for word in _WORDS):
        return True
    return error.__cause__ is not None and is_outage(error.__cause__, local)


def cause_of_outage(error: BaseException, local: bool) -> BaseException:
    """Return the error that says why the storage did not answer: this one, or the last of its causes that is an outage.

    A client may turn a refusal of the store into "no such file". `local`: see `is_outage`.
    """
    cause = error.__cause__
    return error if cause is None or not is_outage(cause, local) else cause_of_outage(cause, local)
