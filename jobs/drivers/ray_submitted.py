"""Queues the job of `ray job submit -- python -m jobs.finetune SPEC` on a cluster that has an orchestrator.

The program that Ray has started stays as long as the job, in little memory. It shows the output of the job's attempts,
ends with the job's exit code, and cancels the job if it is stopped. The attempts do the training. The orchestrator
starts them in this program's environment, and starts a new attempt after an interruption.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import re
import sys
import time
import urllib.parse
import uuid
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Final, TypeVar

from cluster.addresses import is_loopback, is_server_url
from cluster.errors import FleetuneError, InputError, Interrupted, SpecError
from cluster.ray.backend import KIND_KEY
from cluster.ray.raylets import raylet_above
from cluster.ray.runtime_env import RAY_PACKAGE, digest_of_environment
from cluster.ray.session_record import SessionRecord, read_record
from cluster.settings import RayJob, is_without_server, ray_job, server_token, server_url
from jobs.drivers.link.call import NoAnswer, NotUnderstood, Refused, Server
from jobs.drivers.link.link import Say
from jobs.drivers.link.messages import SUBMISSION, Join, Joined, Look, Looked, Message
from jobs.drivers.stop_request import StopRequest
from jobs.preflight.validate import Validated, validate
from jobs.spec.compare import CompareSpec
from jobs.spec.finetune import Spec
from jobs.spec.references import run_named
from jobs.spec.sweep import Search, SweepSpec

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 15.0
_SAYS_EVERY_S = 60.0
_LEAVES_WITHIN_S = 2.0  # Ray kills a program 3 s after it was told to end
_UNKNOWN: Final = "UnknownJob"  # names of errors in the server's answers
_OTHER: Final = "OtherQueue"

Answer = TypeVar("Answer")


class JobRefused(InputError):
    """The orchestrator does not accept this job."""


def host_of_this_program() -> tuple[RayJob, SessionRecord] | None:
    """Return the submitted job that this program is, and the cluster's orchestrator; None if it should run at once.

    Raises:
        MachinesFailed: Ray does not answer whether the cluster has an orchestrator.
        InputError: the orchestrator cannot be reached from here, or FLEETUNE_URL is not a URL.
    """
    job, url = ray_job(), server_url()
    # A job with KIND_KEY was started by the queue, and has its slots already.
    if job is None or KIND_KEY in job.metadata or is_without_server(url):
        return None
    if url is not None:
        _check_url(url)
        return job, SessionRecord(url, "")
    raylet = raylet_above(os.getpid())
    record = read_record(raylet) if raylet is not None else None
    if raylet is None or record is None:
        return None
    _check_url(record.url)
    if not raylet.is_head and is_loopback(urllib.parse.urlsplit(record.url).hostname):
        raise JobRefused(
            "this program does not run on the head, but the orchestrator of this cluster listens only for its own "
            f"machine ({record.url}). Submit without --entrypoint-num-cpus and similar options, which put a driver on "
            "any node. Or have the orchestrator started with --host 0.0.0.0, or with --url and a proxy"
        )
    return job, record


def _check_url(url: str) -> None:
    if not is_server_url(url):
        raise InputError(f"{url} is not the URL of a server, such as http://head:8400")


def queue_and_wait(spec: Spec | SweepSpec | CompareSpec, job: RayJob, record: SessionRecord, say: Say) -> int:
    """Queue the job and stay until it ends. Returns its exit code.

    Raises:
        InputError: the orchestrator does not accept the job.
        Interrupted: this program was asked to end, and has cancelled the job.
    """
    if not re.fullmatch(SUBMISSION, job.submission):
        raise JobRefused(
            f"Ray's job {job.submission!r} cannot be queued: give it a --submission-id of letters, digits, '.', '_' "
            "and '-', at most 200 characters"
        )
    package = package_of(os.getcwd())
    trains = spec.base if isinstance(spec, Search) else spec
    if run_named(trains.model.path) is None:  # the model of a run may not exist yet
        for warning in _validated_apart(trains).warnings:
            say(f"warning: {warning}")
    queued_job = _QueuedJob(record, say)
    message = Join(
        key=uuid.uuid4().hex,
        queue=record.queue,
        submission=job.submission,
        environment=digest_of_environment(job.runtime_env),
        spec=queued(spec, job).model_dump(mode="json"),
        package=package,
    )
    stop, joined = StopRequest(), None
    stop.hold()
    try:
        with stop.raising():
            joined = queued_job.join(message)
            where = f"the orchestrator of this cluster, {queued_job.url}"
            say(f"queued as {joined.job_id} by {where}: fleetune why {joined.job_id}")
            return queued_job.stay(joined)
    except KeyboardInterrupt:
        if joined is not None:
            queued_job.leave(joined.job_id)
        raise Interrupted("this program was asked to end: its job is cancelled") from None


def _validated_apart(spec: Spec) -> Validated:
    """Run `validate` in a child process, because its imports take 30 MB that this program would keep until its end.

    Raises:
        FleetuneError: any error of `validate`; or the child ended without a result.
    """
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as child:
            return child.submit(validate, spec).result()
    except BrokenProcessPool as error:
        raise FleetuneError(
            "the process that checks the spec, its data and its model was killed, mostly for memory. Try fleetune "
            "validate on the same files"
        ) from error


def queued(spec: Spec | SweepSpec | CompareSpec, job: RayJob) -> Spec | SweepSpec | CompareSpec:
    """Set the tenant and the priority that the submission names (`--metadata-json`). Raises SpecError."""
    update: dict[str, str | int] = {}
    if tenant := job.metadata.get("tenant"):
        update["tenant"] = tenant
    if (given := job.metadata.get("priority")) is not None:
        try:
            update["priority"] = int(given)
        except ValueError:
            raise SpecError(f"the job's metadata says priority {given!r}: give a whole number") from None
    return spec.model_copy(update={"queue": spec.queue.model_copy(update=update)})


def package_of(folder: str) -> str | None:
    """Return the directory around `folder` into which Ray has unpacked `--working-dir`; None if there is none."""
    before, found, name = folder.partition(RAY_PACKAGE)
    return f"{before}{found}{name.partition('/')[0]}" if found else None


class _QueuedJob:
    """The job in the queue that this program has submitted, as the server shows it."""

    def __init__(self, record: SessionRecord, say: Say) -> None:
        self._record, self._say = record, say
        self._server = Server(record.url, server_token())
        self._silent_since_s: float | None = None
        self._said_s = 0.0

    @property
    def url(self) -> str:
        return self._server.url

    def join(self, message: Join) -> Joined:
        """Ask for the job to be queued, without a time limit. Raises JobRefused."""

        def once() -> Joined:
            try:
                return self._server.post("/v1/guest/join", message, Joined)
            except Refused as error:
                if error.error in ("", _OTHER):  # a proxy answered, or the server of another queue
                    raise NoAnswer(f"status {error.answered}: {error}") from error
                raise JobRefused(
                    f"the orchestrator of this cluster, {self.url}, does not accept this job: {error}"
                ) from error

        return self._patiently(once, "nothing is started before it does")

    def stay(self, joined: Joined) -> int:
        """Show the job's output until it has ended, and return its exit code. Raises JobRefused."""
        look, words = Look(job_id=joined.job_id, queue=self._record.queue), ""
        while True:
            told = self._patiently(lambda at=look: self._look(at), "the job goes on meanwhile")  # type: ignore[misc]
            sys.stdout.write(told.output)
            sys.stdout.flush()
            if told.words != words:
                words = told.words
                if words:
                    self._say(words)
            look = look.model_copy(update={"attempt": told.attempt, "after": told.after})
            if told.more:
                continue
            if told.exit_code is not None:
                return told.exit_code
            time.sleep(joined.look_every_s * random.uniform(0.8, 1.2))

    def leave(self, job_id: str) -> None:
        """Ask to cancel the job. If the message is lost, the server learns from Ray that this program has ended."""
        try:
            self._server.post(f"/v1/jobs/{job_id}/cancel", Message(), Message, _LEAVES_WITHIN_S)
        except (NoAnswer, NotUnderstood, Refused) as error:
            self._say(
                f"the job could not be cancelled ({error}): the orchestrator will see that this program has ended"
            )

    def _look(self, look: Look) -> Looked:
        """Ask for new output. Errors other than an unknown job count as no answer, because the job may be training."""
        try:
            return self._server.post("/v1/guest/look", look, Looked)
        except Refused as error:
            if error.error == _UNKNOWN:
                raise JobRefused(f"the orchestrator no longer knows {look.job_id}: {error}") from error
            raise NoAnswer(f"status {error.answered}: {error}") from error

    def _patiently(self, ask: Callable[[], Answer], meanwhile: str) -> Answer:
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                answer = ask()
            except (NoAnswer, NotUnderstood) as error:
                if self._tell(error, meanwhile):
                    self._look_for_it_again()
            else:
                if self._silent_since_s is not None:
                    self._silent_since_s = None
                    self._say("the orchestrator answers again")
                return answer
            time.sleep(pause_s * random.uniform(0.7, 1.3))
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    def _tell(self, error: Exception, meanwhile: str) -> bool:
        """Report that there is no answer, at most once a minute. Returns whether it was reported."""
        now_s = time.monotonic()
        if self._silent_since_s is None:
            self._silent_since_s, self._said_s = now_s, now_s - _SAYS_EVERY_S
        if now_s - self._said_s < _SAYS_EVERY_S:
            return False
        self._said_s = now_s
        self._say(
            f"the orchestrator of this cluster, {self.url}, does not answer usefully "
            f"({now_s - self._silent_since_s:.0f} s so far); {meanwhile}: {error}"
        )
        return True

    def _look_for_it_again(self) -> None:
        """Read the server's address and the token again, because the server may have moved and tokens are renewed."""
        url = self.url
        with contextlib.suppress(FleetuneError):
            if self._record.queue and (raylet := raylet_above(os.getpid())) is not None:
                found = read_record(raylet)
                if found is not None and found.queue == self._record.queue and is_server_url(found.url):
                    url = found.url
            self._server = Server(url, server_token())
