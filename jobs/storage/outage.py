"""Whether an error of a storage is an outage, which passes, or would come again. Light to import."""

from __future__ import annotations

import errno
from typing import Final

_PASSING: Final = frozenset(
    {
        errno.EAGAIN,
        errno.EBUSY,  # s3fs: the store asks for fewer requests
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
# In names of classes: clients of object stores have trees of errors of their own.
_WORDS: Final = ("Timeout", "Connection", "Connect")


def is_outage(error: BaseException, local: bool) -> bool:
    """Whether the same call may succeed later: the storage did not answer, or said that it cannot now. Pure.

    Args:
        local: The file system is mounted. There, EIO is mostly a broken disk; s3fs makes it of internal errors of the
            store.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _PASSING or (error.errno == errno.EIO and not local)
    return any(word in cls.__name__ for cls in type(error).__mro__ for word in _WORDS)
