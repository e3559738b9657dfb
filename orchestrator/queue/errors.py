"""Errors of the queue: branches of the tree in `cluster.errors`, each with its HTTP status."""

from __future__ import annotations

from collections.abc import Collection

from cluster.errors import FleetuneError, InputError
from cluster.text import did_you_mean

_NAMED = 5


class QueueError(InputError):
    """A request that the queue refuses."""

    status = 400


class UnknownJob(QueueError):
    """There is no such job, or none that the caller may see.

    Attributes:
        meant: ids of jobs that were perhaps meant; the message has them too.
    """

    status = 404
    meant: tuple[str, ...] = ()
    _without_hint: UnknownJob | None = None

    @classmethod
    def named(cls, job_id: str, meant: Collection[str] = (), more: str = "") -> UnknownJob:
        """`more`: a sentence about the job, if there is something to say."""
        hint = f": did you mean {', '.join(meant)}?" if meant else ""
        end = f"{' ' if hint else '. '}{more}" if more else ""
        error = cls(f"there is no job {job_id!r}{hint}{end}")
        error.meant = tuple(meant)
        error._without_hint = cls.named(job_id) if meant else None
        return error

    def without_hint(self) -> UnknownJob:
        """Return the same error without the ids of other jobs."""
        return self._without_hint or self


class UnreadableJob(QueueError):
    """The job's row cannot be read by this release. `tenant`: the tenant of the job."""

    status = 500

    def __init__(self, message: str, tenant: str = "") -> None:
        super().__init__(message)
        self.tenant = tenant


class UnknownTenant(QueueError):
    status = 404

    @classmethod
    def among(cls, name: str, known: Collection[str]) -> UnknownTenant:
        """Make the error with the tenant that was probably meant, or with some of the existing ones."""
        some = ", ".join(sorted(known)[:_NAMED]) + (" and more" if len(known) > _NAMED else "")
        there = (
            f"there {'is' if len(known) == 1 else 'are'} {some}" if known else "fleetune tenants set NAME creates one"
        )
        return cls(f"there is no tenant {name!r}{did_you_mean(name, known) or f': {there}'}")


class UnknownNode(QueueError):
    status = 404


class UnknownToken(QueueError):
    status = 404


class UnknownSource(QueueError):
    """A job has no log with this name."""

    status = 404


class JobEnded(QueueError):
    """The job has ended, so that the request comes too late."""

    status = 409


class NotEnded(QueueError):
    """The job has not ended, so that the request comes too early."""

    status = 409


class NotReleasable(QueueError):
    """The driver of a job can still be stopped, or is not known to be gone."""

    status = 409


class KeyReused(QueueError):
    """The same idempotency key was used with other content."""

    status = 409


class NameTaken(QueueError):
    status = 409


class TenantChanged(QueueError):
    """Somebody else has changed the tenant since the caller has read it."""

    status = 409


class ParentFailed(QueueError):
    """A parent of the job has failed or was cancelled."""

    status = 409


class TooManyQueued(QueueError):
    """A tenant would have more jobs in the queue than its limit."""

    status = 409


class Forbidden(QueueError):
    """The caller may not do this."""

    status = 403


class OtherQueue(QueueError):
    """A driver or program of another queue sent the request to this server."""

    status = 409


class NotYourAttempt(QueueError):
    """The driver's token belongs to another attempt."""

    status = 401


class AttemptOver(QueueError):
    """The attempt must not go on, since another attempt of the job may run by now."""

    status = 410


class NotLeader(FleetuneError):
    """Another server leads. The decision of this server came too late, and nothing was written."""

    status = 503


class OtherMachines(InputError):
    """Jobs hold leases on other machines than those of this server, which therefore may not lead."""


class StoreBroken(FleetuneError):
    """The store cannot be read or written at the moment. Nothing was written; the caller tries again later."""

    status = 503
