"""The lab: two emulated machines on one LAN, for tests that need real power failures.

    import namespace; namespace.enter()          # first thing in the program
    with Lab("my-test") as lab:
        castor = lab.start_host("castor", disks=[lab.copy_disk(paths.GUEST_ROOT, "castor.raw")])
        print(castor.run("pollux --version").output)
        job = castor.spawn("pollux primary ...", log="primary")
        job.wait_for("listening", timeout=60)
        castor.power_off()

This program stands on the LAN too, at 10.77.0.1: a socket to 10.77.0.10 just works. Everything
that Lab started dies with it, however it ends. Use it from the main thread (see namespace.py).
"""
import os
import shutil
import signal
import subprocess
from pathlib import Path

import hardware
import images
import namespace
import paths
from etcd import Etcd
from host import BRIDGE, AnyHost, Host, Job, Result  # noqa: F401  for the users of this module
from local_host import LocalHost
from machine import LabError, Machine, wait_until  # noqa: F401
from settings import CLIENT_IP, GUEST_IP, HOST_IPS, guest_cmdline  # noqa: F401

KEPT_RUNS = 10         # folders of ended runs, for post-mortems


class Lab:
    """The network and the machines of one run. A context manager; build images first if they are stale."""

    def __init__(self, name: str = "lab", *, build: bool = True, say=print):
        if not os.environ.get(namespace.MARK):
            raise LabError("not inside the lab's namespace: call namespace.enter() at the start of the program")
        if build:
            images.Builder(say).all()
        self.folder = paths.RUNS / f"{name}-{os.getpid()}"
        self.machines: list[Machine | LocalHost | Etcd] = []

    def __enter__(self) -> "Lab":
        remove_old_runs()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        signal.signal(signal.SIGTERM, _exit_on_signal)  # so that __exit__ runs
        self._make_network()
        return self

    def __exit__(self, *_):
        for machine in self.machines:
            machine.power_off()

    def _make_network(self):
        if namespace.has_interface(BRIDGE):  # a former Lab of this program made it
            return
        namespace.ip("link", "set", "lo", "up")
        namespace.ip("link", "add", BRIDGE, "type", "bridge", "forward_delay", "0", "stp_state", "0",
                     "mcast_snooping", "0")
        namespace.ip("addr", "add", f"{CLIENT_IP}/24", "dev", BRIDGE)
        namespace.ip("link", "set", BRIDGE, "up")

    def add_tap(self, name: str):
        """A TAP on the LAN's bridge; an existing one is used again."""
        if not namespace.has_interface(name):
            namespace.ip("tuntap", "add", name, "mode", "tap")
        namespace.ip("link", "set", name, "master", BRIDGE, "up")

    def copy_disk(self, source: Path, name: str) -> Path:
        """A disk file of this run with the content of `source`. Holes stay holes."""
        target = self.folder / name
        subprocess.run(["cp", "--sparse=always", "--reflink=auto", source, target], check=True)
        return target

    def blank_disk(self, name: str, mib: int) -> Path:
        """An empty disk file of this run."""
        target = self.folder / name
        with open(target, "wb") as disk:
            disk.truncate(mib << 20)
        return target

    def start_host(self, name: str, *, disks: list[Path] = (), ip: str | None = None, wait: bool = True,
                   **options) -> Host:
        """Starts a lab host. With wait=False, call wait_ready() later: two hosts boot side by side.

        A host that lost its power is started again by another call with the same name.
        Options: memory_mib, npt (False: shadow paging), cmdline (further words for its kernel).
        """
        for machine in self.machines:
            if machine.name == name and machine.running:
                raise LabError(f"{name} is already running")
        host = Host(self, name, ip or HOST_IPS[name], list(disks), **options)
        self.machines.append(host)
        return host.wait_ready() if wait else host

    def start_etcd(self) -> Etcd:
        """An arbiter for the hosts; call its wait_ready()."""
        etcd = Etcd(self.folder)
        self.machines.append(etcd)
        return etcd

    def vm_host(self, name: str, *, disks: list[Path] = ()) -> AnyHost:
        """A host for guests that shall run and not fail over: this machine, if its hardware can, else a lab host."""
        if not hardware.runs_direct():
            return self.start_host(name, disks=disks)
        host = LocalHost(self, name, list(disks))
        self.machines.append(host)
        return host

    def partition(self, cut: bool = True):
        """Cuts the hosts off from each other, not from the clients; partition(False) heals it."""
        for machine in self.machines:
            if isinstance(machine, Host) and machine.running:
                namespace.ip("link", "set", machine.tap, "type", "bridge_slave", "isolated", "on" if cut else "off")

    def start_hosts(self, disks: dict[str, list[Path]] | None = None, **options) -> tuple[Host, Host]:
        """Starts castor and pollux side by side and waits for both."""
        hosts = [self.start_host(name, disks=(disks or {}).get(name, []), wait=False, **options) for name in HOST_IPS]
        return tuple(host.wait_ready() for host in hosts)


def remove_old_runs():
    """Deletes all but the newest runs of programs that have ended: each holds disks of 128 MiB."""
    runs = sorted(paths.RUNS.glob("*-*"), key=lambda run: run.stat().st_mtime, reverse=True)
    ended = [run for run in runs if not Path("/proc", run.name.rsplit("-", 1)[1]).exists()]
    for run in ended[KEPT_RUNS:]:
        shutil.rmtree(run, ignore_errors=True)


def _exit_on_signal(number, _frame):
    raise SystemExit(128 + number)
