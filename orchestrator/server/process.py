"""The process of `fleetune serve`: assembled, started, and ended in order."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import uvicorn

from cluster.addresses import is_loopback
from cluster.errors import InputError
from cluster.local.machine import machine_name
from cluster.ray.session_record import SessionRecord
from cluster.settings import extra_protocols, fleetune_home, retention_days, server_secrets
from cluster.tls import check_own
from orchestrator.client.discovery import local_server
from orchestrator.controller.controller import Controller
from orchestrator.controller.leadership import LeaderElection
from orchestrator.controller.machines import MachinesGuard
from orchestrator.http.app import make_app
from orchestrator.http.auth import Tokens
from orchestrator.http.metrics import ClusterCollector, Meters
from orchestrator.http.routing import Serving
from orchestrator.local_server import locked, make_home, remove_record, write_record
from orchestrator.queue.clock import USUAL, SystemClock, Timing
from orchestrator.queue.errors import StoreBroken
from orchestrator.queue.records import QueueEvent
from orchestrator.queue.store import Store
from orchestrator.queue.tenants import Tenant
from orchestrator.scheduling.policy import DEFAULT
from orchestrator.server.address import listen, url_here, urls_for_drivers
from orchestrator.server.backends import Place, machines
from orchestrator.server.console import Output, greeting
from orchestrator.server.event_log import EventLog, begins_to_lead, stops
from orchestrator.server.passes import NEWEST, ControlLoop, IdleShutdown, Throttled
from orchestrator.server.ray_updates import DemandUpdates, SessionRecordUpdates
from orchestrator.service.admission import clients
from orchestrator.service.admission import follow_ups as followups
from orchestrator.service.context.context import MOST_RAY_SUBMITTED, ServiceContext
from orchestrator.service.context.identity import queue_id
from orchestrator.service.drivers import launch_of
from orchestrator.service.observability.explain import Explainer
from orchestrator.service.observability.scrub import Scrubber
from orchestrator.service.retention import Retention
from orchestrator.service.tokens import has_admin
from orchestrator.store import label_of, open_store

REGISTER_S, SILENT_S = 600.0, 6 * 3600.0
TENANT = "default"  # created at the start, so that a first submission works
_SWITCH_S = 5e-4  # below Python's 5 ms, so that requests wait less for the interpreter while a pass computes
_ENDS_WITHIN_S = 3
_RAY_SUBMITTED_EVERY_S = 5.0
_DEMAND_EVERY_S = 3.0


@dataclass(frozen=True)
class Options:
    """Options of `fleetune serve`. None: not given."""

    store: str | None = None
    address: str | None = None
    host: str = "127.0.0.1"
    port: int = 8400
    urls: tuple[str, ...] = ()  # the first is this server's own
    shared: tuple[str, ...] = ()
    python: str | None = None
    protected_s: float = DEFAULT.protected_s
    register_s: float = REGISTER_S
    silent_s: float = SILENT_S
    grace_s: float = USUAL.grace_s
    retention_days: float | None = None
    most_ray_submitted: int = MOST_RAY_SUBMITTED
    autoscaler: str | None = None
    take_over: bool = False
    embedded: bool = False
    verbose: bool = False
    tls_cert: str | None = None
    tls_key: str | None = None

    @property
    def scheme(self) -> str:
        return "http" if self.tls_cert is None else "https"


def serve(options: Options) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        InputError, StoreBroken, BackendUnreachable: the server cannot start.
        OtherMachines: jobs hold leases on other machines than those of `options.address`.
    """
    for folder in options.shared:
        if not Path(folder).is_dir():
            raise InputError(f"--shared {folder}: there is no such folder on this machine, which must see it, too")
    _check_tls(options)
    home, secrets = fleetune_home(), server_secrets()
    make_home(home)
    output = Output(Scrubber(secrets.values()), options.verbose)
    output.take_logs()
    with contextlib.ExitStack() as stack:
        if options.store is None:
            stack.enter_context(locked(home))
        stack.callback(remove_record, home)
        sock = stack.enter_context(contextlib.closing(listen(options.host, options.port)))
        store = stack.enter_context(_opened(options, home, output))
        place = machines(options.address, store, home, Path(options.autoscaler) if options.autoscaler else None)
        _check_python(options.python, place)
        guard = MachinesGuard(store, place.machines, place.session_mark, options.take_over)
        guard.check()
        urls, say = urls_for_drivers(sock, options.urls, options.scheme), partial(_tell_of_clock, store, output)
        context = _service_context(options, store, place, urls, secrets, say)
        stack.callback(context.close)
        _Server(options, context, place, guard, sock, home, output).run()


def _check_tls(options: Options) -> None:
    """Check the TLS options. Raises InputError."""
    if (options.tls_cert is None) is not (options.tls_key is None):
        raise InputError("--tls-cert and --tls-key go together: give the certificate and its private key, in PEM")
    if options.tls_cert is not None and options.tls_key is not None:
        check_own(options.tls_cert, options.tls_key)


def _tell_of_clock(store: Store, output: Output, text: str) -> None:
    output.say(text)
    with contextlib.suppress(StoreBroken):
        store.add_events([QueueEvent(time.time(), "clock", text)])


def _check_python(given: str | None, place: Place) -> None:
    """Check `--python` if jobs run on this machine without Ray. Raises InputError."""
    if given is not None and place.engine == "local" and shutil.which(given) is None:
        raise InputError(
            f"--python {given}: there is no such program on this machine. Give the path of a Python that has Fleetune, "
            "or leave it out: then drivers are started with the server's own"
        )


def _store_of(options: Options, home: Path) -> str:
    return options.store if options.store is not None else str(home / "queue.db")


@contextlib.contextmanager
def _opened(options: Options, home: Path, output: Output) -> Iterator[Store]:
    store = open_store(_store_of(options, home))
    try:
        if warning := check_tokens(options, home, store, time.time()):
            output.say(warning)
        if TENANT not in {tenant.name for tenant in store.tenants()}:
            store.put_tenant(Tenant(TENANT), SystemClock().now_s())
        yield store
    finally:
        store.close()


def _timing(options: Options, drivers_speak: bool) -> Timing:
    return Timing(
        grace_s=options.grace_s,
        slow_s=options.grace_s + USUAL.slow_s - USUAL.grace_s,
        register_s=options.register_s,
        silent_s=options.silent_s if drivers_speak else None,  # drivers on a fake cluster send no heartbeats
    )


def check_tokens(options: Options, home: Path, store: Store, now_s: float) -> str:
    """Check that a server that other machines reach has a token. Returns a warning if no admin's token is valid, or ''.

    Expired tokens let nobody in, so they keep no server from starting: its jobs go on.

    Raises InputError.
    """
    url = _store_of(options, home)
    url = "URL" if "@" in url or "?" in url else url  # it may contain a password
    command = f"fleetune tokens add NAME --role admin --store {url}"
    if all(token.revoked_s is not None for token in store.tokens()):
        if is_loopback(options.host):
            return ""
        raise InputError(
            f"on {options.host} anybody could reach this server, and it has no admin's token yet. Make one first:\n"
            f"  {command}"
        )
    return "" if has_admin(store, now_s) else f"no token of an admin is valid any more. To make one: {command}"


def _service_context(
    options: Options,
    store: Store,
    place: Place,
    urls: tuple[str, ...],
    secrets: dict[str, str],
    say: Callable[[str], None],
) -> ServiceContext:
    return ServiceContext(
        store=store,
        backend=place.backend,
        clock=SystemClock(float(store.facts().get(NEWEST, "0")), say),
        policy=replace(DEFAULT, protected_s=options.protected_s),
        engine=place.engine,
        url=urls[0],
        other_urls=urls[1:],
        queue=queue_id(store),
        shared=tuple(str(Path(folder).absolute()) for folder in options.shared),
        one_machine=place.one_machine,
        secrets=secrets,
        most_ray_submitted=options.most_ray_submitted,
        retention_days=retention_days() if options.retention_days is None else options.retention_days,
        protocols=extra_protocols(),
        python=(options.python or (sys.executable if place.one_machine else "python3"),),
    )


class _Server:
    """The parts of a running server."""

    def __init__(
        self,
        options: Options,
        context: ServiceContext,
        place: Place,
        guard: MachinesGuard,
        sock: socket.socket,
        home: Path,
        output: Output,
    ) -> None:
        self._options, self._context, self._place, self._guard = options, context, place, guard
        self._sock, self._home, self._output = sock, home, output
        self._meters = Meters()
        self._tokens = Tokens(context.store, not is_loopback(options.host), context.clock.now_s)
        self._election = LeaderElection(context.store, context.clock, socket.gethostname(), context.url)
        self._loop = self._make_loop()
        self._http = self._make_http()

    def run(self) -> None:
        self._tokens.read()
        self._output.greet(self._greeting())
        if self._options.store is None:
            write_record(self._home, self._url_here, self._options.embedded)
        elif local_server(self._home) is None:  # so that scripts of this machine find it, and start none
            with contextlib.suppress(OSError):
                write_record(self._home, self._url_here, self._options.embedded)
        sys.setswitchinterval(_SWITCH_S)
        self._loop.start()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)  # uvicorn handles these signals, and raises them again after its end
        try:
            self._http.run(sockets=[self._sock])
        finally:
            self._loop.end()
            with contextlib.suppress(StoreBroken):
                if self._loop.leads():
                    self._note(stops)
                self._election.resign()
            self._output.say("stopped; jobs go on")

    def _greeting(self) -> Sequence[str]:
        options = self._options
        return greeting(
            self._context,
            store=label_of(_store_of(options, self._home)),
            machines=self._place.label,
            url=self._url_here,
            named=options.store is None,
            tokens_needed=self._tokens.needed,
            in_clear=options.tls_cert is None and not is_loopback(options.host),
        )

    @property
    def _url_here(self) -> str:
        """The URL for clients on this machine. With TLS, its name must be one of the certificate's."""
        if self._options.tls_cert is not None and self._options.urls:
            return self._context.url
        return url_here(self._sock, self._options.scheme)

    def _make_loop(self) -> ControlLoop:
        context, say = self._context, self._output.say
        controller = self._controller = Controller(
            context.store,
            context.backend,
            context.clock,
            self._election,
            launch_of(context),
            context.policy,
            timing=_timing(self._options, drivers_speak=context.engine != "fake"),
            takes_over=self._options.take_over,
            guard=self._guard,
        )
        event_log = EventLog(context.store, self._meters, say)
        begins = partial(self._note, begins_to_lead)
        return ControlLoop(
            controller, self._election, event_log, self._meters, say, self._after_each_pass(controller), begins
        )

    def _note(self, what: Callable[[Store, float, str], None]) -> None:
        """Write an event about this server. Raises StoreBroken."""
        what(self._context.store, self._context.clock.now_s(), self._context.url)

    def _after_each_pass(self, controller: Controller) -> list[Callable[[], object]]:
        context, store = self._context, self._context.store
        after: list[Callable[[], object]] = [
            partial(followups.follow_up, context),
            Throttled(lambda: store.put_facts({NEWEST: repr(context.clock.now_s())})),
            Throttled(context.machines.last_known),  # so that nodes that disappear are remembered
            Throttled(lambda: self._guard.record(self._election.epoch)),  # the head may have been started anew
        ]
        # Even without --embedded: a script may use a server that was already running.
        after.append(Retention(context, lambda: self._election.epoch))
        after.append(partial(clients.cancel_what_the_gone_left, context, self._home))
        after.append(Throttled(partial(clients.forget_the_gone, context, self._home)))
        if self._place.session is not None:
            record = SessionRecord(context.url, context.queue)
            record_updates = SessionRecordUpdates(self._place.session, record, self._output.say)
            after.append(Throttled(record_updates, _RAY_SUBMITTED_EVERY_S))
        after.append(Throttled(partial(clients.cancel_jobs_of_ended_ray_programs, context), _RAY_SUBMITTED_EVERY_S))
        if self._place.autoscaler is not None:
            demand_updates = DemandUpdates(self._place.autoscaler, controller.demand, self._output.say)
            after.append(Throttled(demand_updates, _DEMAND_EVERY_S))
        if self._options.embedded:
            after.append(IdleShutdown(store, self._home, self._end))
        return after

    def _make_http(self) -> uvicorn.Server:
        context, meters, output = self._context, self._meters, self._output
        meters.heartbeat_faults.set_function(lambda: context.heartbeats.faults)
        meters.registry.register(ClusterCollector(context.store, context.machines.inventory, context.clock.now_s))
        meters.set_aside.set_function(lambda: len(context.store.unreadable()) + len(self._controller.set_aside()))
        serving = Serving(
            context=context,
            tokens=self._tokens,
            scrub=output.scrub,
            meters=meters,
            explainer=Explainer(context),
            wake=self._loop.wake,
            leads=self._loop.leads,
            trouble=self._loop.trouble,
            unanswered=self._loop.unanswered,
            planning_leaves_out=self._controller.set_aside,
            version=version("fleetune"),
            machine=machine_name(),
        )
        return uvicorn.Server(
            uvicorn.Config(
                make_app(serving, output.say),
                log_config=None,
                access_log=self._options.verbose,
                ssl_certfile=self._options.tls_cert,
                ssl_keyfile=self._options.tls_key,
                proxy_headers=False,
                server_header=False,
                lifespan="off",
                ws="none",
                timeout_graceful_shutdown=_ENDS_WITHIN_S,
            )
        )

    def _end(self) -> None:
        self._http.should_exit = True
