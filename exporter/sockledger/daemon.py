"""The daemon's life: lock, load, attach, bind, serve and flush until a signal; the kernel counts on."""

import asyncio
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from socket import gethostname, socket
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, ProcessCollector

from sockledger import __version__, config, log, systemd
from sockledger.collectors.exporter import Exporter
from sockledger.collectors.registry import PEERS, TAGS, TASKS, UNIX, Registry
from sockledger.config import ALWAYS, NEVER, Config, ConfigError, Kubernetes, RunOptions
from sockledger.errors import UserError, remedy
from sockledger.exposition import text
from sockledger.kernel import cgroups
from sockledger.kernel.attachments import hot_paths
from sockledger.kernel.datapath import DataPath, Parts
from sockledger.kernel.features import require
from sockledger.kernel.host import in_host_network
from sockledger.kernel.links import HOT_PATH
from sockledger.kernel.lock import Lock
from sockledger.kernel.meters import Meters
from sockledger.kernel.pins import Pins
from sockledger.kernel.shown import ShownMap
from sockledger.kernel.tag_pin import TagPin
from sockledger.ledger.births import Births
from sockledger.ledger.ledger import KINDS, Ledger
from sockledger.web import listen, server
from sockledger.workloads.engines import EngineNames
from sockledger.workloads.names import Names
from sockledger.workloads.naming import LABELS, Naming
from sockledger.workloads.networks import PeerNetworks
from sockledger.workloads.pod_watch import PodWatch

if TYPE_CHECKING:
    from sockledger.workloads.node_networks import NodeNetworks

logger = logging.getLogger(__name__)

# Together within the 2 seconds that a stop may take.
GRACE_SECONDS = 1.0
LOCK_POLL_SECONDS = 0.2
ATTACHMENTS_POLL_SECONDS = 2.0  # a look takes 20 ms; a reload without pins has nothing attached for 1 s
MEND_SECONDS = 30.0
LOOK_SECONDS = 1.0
RETRY_SECONDS = 10.0  # after a flush that failed

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

NODE_NAME = "NODE_NAME"

# What a daemon passes on to the one it executes: "lock fd, listening fd, …"
INHERITED = "SOCKLEDGER_INHERITED_FDS"


def run(options: RunOptions) -> int:
    """Run until SIGTERM or SIGINT; return the exit status. UserError if it cannot start."""
    log.setup(options.log_level, options.log_format)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # usually 1024; a meter takes two
    lock_fd, sockets = _take_inherited()
    lock = Lock(options.bpffs, lock_fd)
    try:
        return asyncio.run(Daemon(options, lock, sockets).run())
    finally:
        lock.release()  # a successor never comes here


class Daemon:
    """One daemon: `run` once."""

    def __init__(self, options: RunOptions, lock: Lock, sockets: list[socket]) -> None:
        """Read the configuration; ConfigError. *sockets* are listening ones that a predecessor passed on."""
        self._options = options
        self._lock = lock
        self._sockets = sockets
        self._config = _load(options.config_file)
        self._config_ok = True
        self._signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
        self._pins = Pins(options.bpffs)
        if options.systemd_socket and not self._sockets:
            self._sockets = listen.systemd_sockets()
        # one thread owns the ledger: flushes and scrapes wait for each other, never for the event loop
        self._executor = ThreadPoolExecutor(
            1, "ledger", initializer=signal.pthread_sigmask, initargs=(signal.SIG_BLOCK, SIGNALS)
        )
        self._networks: PeerNetworks | None = None
        self._ready = False
        self._flushes = True  # the last one, if there was any, succeeded

    async def run(self) -> int:
        """Start, serve, stop."""
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._signals.put_nowait, number)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # a predecessor in this process blocked them
        try:
            return await self._run()
        finally:
            # the loop's end restores the default action: a second signal would kill a stop that is done
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

    async def _run(self) -> int:
        pinging = asyncio.create_task(self._ping_watchdog())
        require()
        root = cgroups.find_root(self._options.cgroupfs)
        datapath = await self._attach(root)
        if datapath is None:
            return 0
        try:
            successor = await self._serve(datapath, root)
        finally:
            pinging.cancel()
            self._executor.shutdown(cancel_futures=True)
            end = "all programs are detached"
            if self._options.pin:  # or what somebody has unpinned would end with us
                pinned = self._look_after(datapath)
                end = "the kernel counts on" if pinned else "what is not pinned is detached"
            datapath.close()
        if successor and not await self._stop_came():
            _execute_anew(self._lock, self._sockets)
        logger.info("stopped: %s", end)
        return 0

    async def _attach(self, root: cgroups.CgroupRoot) -> DataPath | None:
        """Attach when nobody else counts there; None if a signal came first."""
        while await self._until_alone(root):
            self._networks = None
            with ExitStack() as undo:
                with self._pins_are_ours():
                    datapath = self._load(root)
                undo.callback(datapath.close)
                undo.callback(datapath.undo)
                if PEERS in self._collectors():
                    # pyroute2 does not work in this thread, which has an event loop
                    self._networks = await asyncio.get_running_loop().run_in_executor(
                        self._executor, _networks, datapath, self._config
                    )
                    undo.callback(self._executor.submit, self._networks.close)
                with self._pins_are_ours():
                    datapath.attach()
                if self._networks:
                    # for classes that had to wait until no other programs counted
                    await asyncio.get_running_loop().run_in_executor(self._executor, self._networks.look)
                ours = datapath.links.held[HOT_PATH].id
                if ours == min([ours, *hot_paths(root.id)]):  # 0 is one that may have been faster
                    # not before: another daemon may be on its way with the same addresses
                    if not self._sockets:
                        self._sockets = listen.bind(self._options.listen_addresses)
                    undo.pop_all()
                    return datapath
        return None

    @contextmanager
    def _pins_are_ours(self) -> Iterator[None]:
        """Take what fails for a sign that they are not, unless something is short."""
        try:
            yield
        except (OSError, ValueError) as error:
            if remedy(error) or not self._options.pin:
                raise
            raise UserError(
                f"{self._pins.folder}: {error}: what is pinned there is not all ours, or not "
                "readable: sockledger uninstall removes it and ends its counts"
            ) from None

    async def _until_alone(self, root: cgroups.CgroupRoot) -> bool:
        """Take the lock when nobody else counts there; False if a signal came first.

        One with a bpffs of its own may, or one whose pins somebody has removed, who must be able to take the
        lock and pin again.
        """

        def alone() -> bool:
            return set(hot_paths(root.id)) <= self._pins.link_ids(HOT_PATH)

        def locked() -> bool:
            held = self._lock.try_acquire()
            if not self._options.pin and self._pins.there():  # nor will it wait for who leaves them
                raise UserError(
                    f"{self._pins.folder}: counts are pinned there, and a daemon that pins nothing cannot go "
                    "on with them: leave out --no-pin, or run sockledger uninstall, which ends them"
                )
            return held

        lock = {"lock": str(self._options.bpffs / "sockledger")}
        while await self._wait_until(locked, LOCK_POLL_SECONDS, lock):
            if alone():
                return True
            self._lock.release()
            if not await self._wait_until(alone, ATTACHMENTS_POLL_SECONDS, {"cgroup": str(root.path)}):
                return False
        return False

    def _load(self, root: cgroups.CgroupRoot) -> DataPath:
        limits = self._config.limits
        return DataPath(
            root,
            cgroups=limits.cgroups,
            sockets=limits.sockets,
            connections=limits.connections,
            label_sets=limits.label_sets,
            comms=limits.comms,
            tags=limits.tags,
            parts=self._parts(),
            pins=self._pins if self._options.pin else None,
            tag_pin=self._tag_pin() if self._options.pin else None,
            lease=self._config.persist.lease if self._options.pin else 0,
        )

    def _tag_pin(self) -> TagPin:
        return TagPin(self._options.bpffs, self._config.tags.owner, self._config.tags.group)

    def _parts(self) -> Parts:
        tcp = not self._options.collectors.isdisjoint(("tcp", "listeners"))
        return Parts(
            tcp=tcp,
            tcp_histograms=self._options.tcp_histograms and "tcp" in self._options.collectors,
            udp="udp" in self._options.collectors,
            peers=PEERS in self._collectors(),
            unix=UNIX in self._collectors(),
            tasks=TASKS in self._collectors(),
            tags=TAGS in self._collectors(),
        )

    def _collectors(self) -> frozenset[str]:
        """Return the enabled collectors; peers have classes only where there are networks.

        Nobody can tag without pins.
        """
        without_networks = frozenset() if self._config.has_networks else {PEERS}
        return self._options.collectors - without_networks - (frozenset() if self._options.pin else {TAGS})

    async def _wait_until(
        self, free: Callable[[], bool], poll_seconds: float, where: Mapping[str, str]
    ) -> bool:
        """Wait for another daemon's end; False if a signal came first.

        Who has waited looks twice: the other one may only be executing itself anew.
        """
        waiting = twice = False
        while not (now_free := free()) or (waiting and not twice):
            twice = now_free
            if not waiting:
                logger.warning(
                    "another sockledger counts in this cgroup or holds the lock: waiting until it stops, "
                    "or, if none runs, until what it has pinned is uninstalled",
                    extra=where,
                )
                systemd.notify("STATUS=waiting until another sockledger stops")
                waiting = True
                self._stop_listening()
            try:
                number = await asyncio.wait_for(self._signals.get(), poll_seconds)
            except TimeoutError:
                continue
            if number != signal.SIGHUP:
                _say_stopping(number)
                return False
            self._reload()
        return True

    def _reload(self) -> bool:
        """Read the configuration again; False, and the old one stays, if it is refused."""
        try:
            loaded = _load(self._options.config_file)
            _require_networks(loaded)
            self._config = loaded
            self._config_ok = True
        except UserError as error:
            logger.error("configuration refused, going on with the old one", extra={"error": str(error)})  # noqa: TRY400
            self._config_ok = False
        return self._config_ok

    def _files_ok(self) -> bool:
        return self._config_ok and (self._networks is None or self._networks.as_configured)

    def _stop_listening(self) -> None:
        """Refuse connections that nobody would answer; what systemd has passed cannot be had twice."""
        if not self._options.systemd_socket:
            while self._sockets:
                self._sockets.pop().close()

    async def _serve(self, datapath: DataPath, root: cgroups.CgroupRoot) -> bool:
        """Answer and flush until a signal ends it; return whether a successor is to be executed."""
        births = Births(ShownMap(datapath.maps["shown"]), datapath.generations)
        meters = Meters(self._config.attach.meters, root, datapath)
        ledger = Ledger(
            datapath,
            root,
            meters,
            gone=self._config.persist.gone,
            names=_names(root, datapath, self._config),
            hidden=[name for name in KINDS if getattr(self._config.labels, name) == NEVER],
            most_workloads=self._config.limits.workloads,
            births=births,
        )
        registry = Registry(self._collectors(), ledger, births)
        exporter = Exporter(ledger, births, self._files_ok)
        process = CollectorRegistry()
        ProcessCollector(registry=process)

        def scrape(request: server.ScrapeRequest) -> server.Scrape:
            ledger.refresh()
            births.let_go(ledger.books.workloads)
            families = [*registry.collect(), *exporter.collect()]
            seen = births.scrapers.seen_by(request.scraper)
            page = text.render(families, seen=seen, openmetrics=request.openmetrics)
            if self._options.exporter_metrics:
                page = text.add_registry(page, process, openmetrics=request.openmetrics)
            newest, began = births.newest, ledger.books.began
            return server.Scrape(page, partial(births.note_page, request.scraper, newest, began))

        web = server.Server(
            self._sockets,
            scrape,
            self._executor,
            ready=lambda: self._ready,
            telemetry_path=self._options.telemetry_path,
            max_requests=self._options.max_requests,
            version=__version__,
        )
        web.start()
        tasks = [
            asyncio.create_task(self._flush_for_ever(ledger)),
            asyncio.create_task(
                self._repeat(MEND_SECONDS, "look at programs and pins", partial(self._look_after, datapath))
            ),
            # a pod may be gone before the next flush, and its name with it
            asyncio.create_task(self._repeat(LOOK_SECONDS, "look for names", ledger.look_for_names)),
        ]
        if self._networks:
            look = self._repeat(LOOK_SECONDS, "look for networks", self._networks.look)
            tasks.append(asyncio.create_task(look))
        logger.info(
            "counting",
            extra={
                "version": __version__,
                "cgroupfs": str(root.path),
                "listening": ", ".join(_shown(listening) for listening in self._sockets),
            },
        )
        try:
            return await self._until_signal()
        finally:
            self._ready = False
            for task in tasks:
                task.cancel()
            await web.stop(GRACE_SECONDS)

    async def _flush_for_ever(self, ledger: Ledger) -> None:
        while True:
            try:
                await asyncio.get_running_loop().run_in_executor(self._executor, ledger.flush)
                self._flushes = True
                if not self._ready:
                    self._ready = True
                    systemd.notify("READY=1", "STATUS=counting")
            except Exception:
                logger.exception("flush failed")
                self._flushes = False
            interval = self._config.flush.interval
            await asyncio.sleep(interval if self._flushes else min(interval, RETRY_SECONDS))

    async def _repeat(self, seconds: float, what: str, action: Callable[[], object]) -> None:
        """Have the ledger's thread do something again and again; if it fails, it is done the next time."""
        while True:
            await asyncio.sleep(seconds)
            try:
                await asyncio.get_running_loop().run_in_executor(self._executor, action)
            except Exception:
                logger.exception("%s failed", what)

    def _look_after(self, datapath: DataPath) -> bool:
        """Attach and pin again; return whether all is attached, and pinned."""
        try:
            self._lock.renew()  # or another daemon counts in our place
            datapath.attach_again()
            datapath.pin_again()
            return not datapath.detached()
        except (UserError, OSError) as error:
            logger.error("attaching and pinning again failed", extra={"error": str(error)})  # noqa: TRY400
            return False

    async def _ping_watchdog(self) -> None:
        """Tell systemd that this loop runs, the ledger's thread gets on, and flushes succeed.

        Flushes may be rarer than its pings: it waits for the thread, which one that hangs keeps busy.
        """
        seconds = systemd.watchdog_seconds()
        while seconds is not None:
            await asyncio.get_running_loop().run_in_executor(self._executor, lambda: None)
            if self._flushes:
                systemd.notify("WATCHDOG=1")
            await asyncio.sleep(seconds / 2)

    async def _until_signal(self) -> bool:
        while True:
            number = await self._signals.get()
            if number != signal.SIGHUP:
                _say_stopping(number)
                return False
            systemd.notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
            if not self._can_have_successor() or not self._reload():
                if self._ready:
                    systemd.notify("READY=1")
                continue
            if self._options.pin:
                logger.info("executing anew with the new configuration")
            else:
                logger.warning(
                    "executing anew with the new configuration: without pins all counters start at 0"
                )
            return True

    def _can_have_successor(self) -> bool:
        """Whether one could find and pin anything where we have."""
        try:
            if self._options.pin:
                self._lock.require_writable()
        except UserError as error:
            logger.error("not executed anew", extra={"error": str(error)})  # noqa: TRY400
            return False
        return True

    async def _stop_came(self) -> bool:
        """Leave all signals from now on to the successor; return whether one before asks to stop."""
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        await asyncio.sleep(0.01)  # handlers of those that came before run
        while not self._signals.empty():
            number = self._signals.get_nowait()
            if number != signal.SIGHUP:
                _say_stopping(number)
                return True
        return False


def _load(path: Path | None) -> Config:
    """Return the configuration, if it can be used here; ConfigError."""
    loaded = config.load(path)
    kubernetes = loaded.workloads.kubernetes
    if kubernetes and not _node(kubernetes):
        raise ConfigError(
            f"workloads.kubernetes: nothing says which node this is: set {NODE_NAME} in the environment "
            "(valueFrom fieldRef spec.nodeName), or workloads.kubernetes.node"
        )
    return loaded


def _node(kubernetes: Kubernetes) -> str:
    """Return the node whose pods the API is asked for; empty if that is not known."""
    # a pod's own host name is the pod's
    hostname = gethostname().lower() if kubernetes.kubeconfig else ""
    return kubernetes.node or os.environ.get(NODE_NAME, "") or hostname


def _names(root: cgroups.CgroupRoot, datapath: DataPath, configured: Config) -> Names:
    labels, workloads = configured.labels, configured.workloads
    naming = Naming(
        rules=[rule.match for rule in workloads.rules],
        level=configured.aggregate,
        hidden=frozenset(name for name in LABELS if getattr(labels, name) == NEVER),
        with_path=labels.cgroup == ALWAYS,
        include=configured.include,
        exclude=configured.exclude,
    )
    sockets = {"docker": workloads.docker.socket, "podman": workloads.podman.socket}
    engines = EngineNames({runtime: path for runtime, path in sockets.items() if path})
    watch = None
    if kubernetes := workloads.kubernetes:
        watch = PodWatch(
            _node(kubernetes), kubernetes.kubeconfig, kubernetes.pod_labels, kubernetes.pod_annotations
        )
    return Names(root, datapath.cgroups, naming, engines=engines, watch=watch)


def _networks(datapath: DataPath, configured: Config) -> PeerNetworks:
    try:
        return PeerNetworks(
            configured.networks,
            configured.service_networks,
            datapath.networks.put,
            configured.networks_file,
            config.load_networks,
            _node_networks(configured),
        )
    except OSError as error:
        if remedy(error):
            raise
        raise UserError(f"networks: {error}: leave them out, or node_networks") from None


def _node_networks(configured: Config) -> "NodeNetworks | None":
    _require_networks(configured)
    if not configured.node_networks:
        return None
    from sockledger.workloads.node_networks import NodeNetworks  # heavy, and few need it

    return NodeNetworks(configured.node_networks)


def _require_networks(configured: Config) -> None:
    """Raise UserError unless the host's networks are here, if they are wanted."""
    if configured.node_networks and not in_host_network():
        raise UserError(
            "node_networks: this is not the host's network namespace, whose addresses they are: "
            "run there (hostNetwork), or leave them out"
        )


def _say_stopping(number: signal.Signals) -> None:
    logger.info("stopping", extra={"signal": number.name})
    systemd.notify("STOPPING=1")


def _take_inherited() -> tuple[int | None, list[socket]]:
    """Take the lock and the listening sockets that a predecessor in this process has passed on."""
    text = os.environ.pop(INHERITED, "")
    if not text:
        return None, []
    try:
        lock_fd, *listening = [int(fd) for fd in text.split(",")]
        for fd in (lock_fd, *listening):
            os.set_inheritable(fd, False)  # noqa: FBT003
        sockets = [socket(fileno=fd) for fd in listening]
    except (ValueError, OSError):
        raise UserError(f"{INHERITED} is for the daemon's own use: take it out of the environment") from None
    for each in sockets:
        each.settimeout(0)  # Python does not look at what the descriptor is set to
    return lock_fd, sockets


def _execute_anew(lock: Lock, listening: list[socket]) -> None:
    """Replace this program by a new one with the same arguments, which goes on with lock and sockets."""
    fds = [lock.fileno(), *(each.fileno() for each in listening)]
    for fd in fds:
        os.set_inheritable(fd, True)  # noqa: FBT003
    os.environ[INHERITED] = ",".join(map(str, fds))
    try:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606
    except OSError as error:
        raise UserError(f"{sys.executable}: {error.strerror}: cannot execute anew, stopped") from None


def _shown(listening: socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
