"""The caller of a request, and its rights."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.queue.errors import Forbidden, UnknownJob, UnreadableJob
from orchestrator.queue.records import Job, Role
from orchestrator.queue.store import Store


@dataclass(frozen=True)
class Caller:
    """The holder of a token, or any caller if the server has no tokens.

    Attributes:
        tenant: None: all tenants (an admin, or a viewer of all). A member without a tenant sees none.
    """

    name: str
    role: Role
    tenant: str | None = None

    @property
    def is_admin(self) -> bool:
        return self.role is Role.ADMIN

    @property
    def sees_all(self) -> bool:
        """Whether the caller may see the jobs of all tenants."""
        return self.is_admin or (self.role is Role.VIEWER and self.tenant is None)

    def may_see(self, tenant: str) -> bool:
        """Whether the caller may see the tenant's jobs."""
        return self.sees_all or tenant == self.tenant

    def may_look(self, tenant: str | None) -> bool:
        """Whether a list of a tenant's jobs may have any for the caller; None: of all tenants that it may see.

        If not, the answer is empty, whether there are jobs or not.
        """
        return self.may_see(tenant) if tenant is not None else self.sees_all or self.tenant is not None

    def may_touch(self, tenant: str) -> bool:
        """Whether the caller may submit for the tenant, and change its jobs."""
        return self.is_admin or (self.role is Role.MEMBER and tenant == self.tenant)

    def check_may_touch(self, tenant: str) -> None:
        """Raise Forbidden unless the caller may act for the tenant."""
        if self.may_touch(tenant):
            return
        self.check_may_change()
        raise Forbidden(f"{self.name} is of tenant {self.tenant!r}, and may not act for {tenant!r}: ask an admin")

    def check_may_change(self) -> None:
        """Raise Forbidden if the caller may only read."""
        if self.role is Role.VIEWER:
            raise Forbidden(f"{self.name} may look, and change nothing: ask an admin for a token with the role member")

    def check_is_admin(self) -> None:
        """Raise Forbidden unless the caller is an admin."""
        if not self.is_admin:
            raise Forbidden(f"{self.name} is no admin (its role is {self.role}): ask one to do this")


ANYBODY = Caller("local", Role.ADMIN)


def job_for(caller: Caller, store: Store, job_id: str) -> Job:
    """Return a job. Raises UnknownJob with the same message if there is none and if it is another tenant's."""
    try:
        job = store.job(job_id)
    except UnknownJob:
        if caller.sees_all:
            raise
        raise UnknownJob.named(job_id) from None
    except UnreadableJob as error:
        if caller.may_see(error.tenant):
            raise
        raise UnknownJob.named(job_id) from None
    if not caller.may_see(job.tenant):
        raise UnknownJob.named(job_id)
    return job
