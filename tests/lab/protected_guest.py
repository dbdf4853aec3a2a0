"""The lab's guest under Pollux: one host leads, the other follows and takes over. Used by the demo and the tests."""
import json
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import paths
from etcd import Etcd
from lab import GUEST_IP, HOST_IPS, Host, Job, Lab, LabError, guest_cmdline
from machine import wait_until

LINK_PORT = 7700
GUEST_MAC = "52:54:00:77:00:10"
GUEST_MEMORY = "192M"
EPOCH_MS = 100
# An emulated host does little else while it copies a large epoch: silence must be longer than that.
TIMEOUT_MS = 3000


def make_keys(names) -> dict[str, tuple[bytes, bytes]]:
    """A key pair for each host, by `pollux keygen`: name -> (secret, public)."""
    keys = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            path = Path(folder, name)
            subprocess.run([paths.pollux_binary(), "keygen", path], check=True, stdout=subprocess.DEVNULL)
            keys[name] = (path.read_bytes(), path.with_suffix(".pub").read_bytes())
    return keys


def other(name: str) -> str:
    """The host's peer."""
    return next(peer for peer in HOST_IPS if peer != name)


@dataclass
class Replica:
    """A host and the Pollux that runs on it."""
    host: Host
    job: Job

    @property
    def name(self) -> str:
        return self.host.name


class ProtectedGuest:
    """castor leads at first, pollux follows; each step can also be taken alone. The guest is the lab's, with Redis."""

    def __init__(self, lab: Lab, *, epoch_ms: int = EPOCH_MS, timeout_ms: int = TIMEOUT_MS):
        self.lab, self.epoch_ms, self.timeout_ms = lab, epoch_ms, timeout_ms
        self.disks = self._make_disks()
        self.keys = make_keys(HOST_IPS)
        self.hosts: dict[str, Host] = {}
        self.leader: Replica
        self.follower: Replica

    def start(self):
        """Both hosts, and on them the backup and the primary."""
        self.start_hosts()
        self.start_backup()
        self.start_primary()

    def start_hosts(self):
        """And the arbiter."""
        arbiter = self.lab.start_etcd()
        hosts = self.lab.start_hosts({name: self._disks_of(name) for name in HOST_IPS})
        arbiter.wait_ready()
        for host in hosts:
            self._prepare(host)

    def _make_disks(self) -> dict[str, Path]:
        """A disk for each host."""
        return {name: self.lab.copy_disk(paths.GUEST_ROOT, f"{name}.raw") for name in HOST_IPS}

    def _disks_of(self, name: str) -> list[Path]:
        return [self.disks[name]] if self.disks else []

    def _disk_words(self) -> str:
        return "--disk /dev/vda" if self.disks else ""

    def _machine_words(self, kernel_words: tuple[str, ...]) -> str:
        """What a primary is started with, for its guest."""
        return (f"--epoch-ms {self.epoch_ms} --staging 64M --kernel /guest/vmlinuz --initrd /guest/initrd.cpio"
                f" --cmdline '{guest_cmdline(*kernel_words)}' --memory {GUEST_MEMORY}")

    def _prepare(self, host: Host):
        self.hosts[host.name] = host
        secret, _ = self.keys[host.name]
        _, peer_public = self.keys[other(host.name)]
        host.put(secret, "/root/key", mode="600")
        host.put(peer_public, "/root/peer.pub")
        host.add_tap("tap0")

    def _shared_words(self) -> str:
        return (f"--key /root/key --peer-key /root/peer.pub --arbiter etcd:{Etcd.url} --console file=/root/console"
                f" --timeout-ms {self.timeout_ms} --stats /root/stats.json --control /root/control")

    def _spawn_backup(self, host: Host, words: str) -> Replica:
        return Replica(host, host.spawn(
            f"pollux backup --listen 0.0.0.0:{LINK_PORT} {words} {self._shared_words()} --primary-staging 64M"
            f" --epoch-ms {self.epoch_ms} {self._disk_words()} --net tap=tap0 --timeline /root/timeline.json", "backup"))

    def start_backup(self):
        self.follower = self._spawn_backup(self.hosts["pollux"], "")
        self.follower.job.wait_for("listening", 60)

    def start_primary(self, *kernel_words: str):
        host = self.hosts["castor"]
        self.leader = Replica(host, host.spawn(
            f"pollux primary --backup {HOST_IPS['pollux']}:{LINK_PORT} --listen 0.0.0.0:{LINK_PORT} {self._shared_words()}"
            f" {self._machine_words(kernel_words)} {self._disk_words()} --net tap=tap0,mac={GUEST_MAC}", "primary"))

    def wait_until_protected(self, timeout: float = 120):
        self.leader.job.wait_for("from here on it can take over", timeout)

    def wait_until(self, protection: str, timeout: float = 60):
        """What the leader's statistics say: protected, unprotected, ..."""
        wait_until(lambda: self.statistics()["protection"] == protection, timeout,
                   f"{self.leader.name} is {protection}")

    def statistics(self) -> dict:
        return json.loads(self.leader.host.get("/root/stats.json"))

    def wait_until_promoted(self, timeout: float = 60) -> dict:
        """The follower leads now, and nobody follows. Returns the failover's timeline."""
        self.follower.job.wait_for("runs unprotected now", timeout)
        self.leader = self.follower
        return json.loads(self.leader.host.get("/root/timeline.json"))

    def rejoin(self, name: str):
        """A host that lost its power comes back with the disk that it had, and follows."""
        if name == self.leader.name:
            raise LabError(f"{name} leads: it has nobody to join")
        host = self.lab.start_host(name, disks=self._disks_of(name))
        self._prepare(host)
        self.follower = self._spawn_backup(host, f"--join {HOST_IPS[self.leader.name]}:{LINK_PORT}")

    def follow_again(self, name: str):
        """A host that lives, but whose Pollux has ended, follows again."""
        self.follower = self._spawn_backup(self.hosts[name], f"--join {HOST_IPS[self.leader.name]}:{LINK_PORT}")

    def start_anew(self, name: str):
        """A host comes back with the disk that it had, and boots the guest from it: another machine, on its own."""
        host = self.lab.start_host(name, disks=self._disks_of(name))
        self._prepare(host)
        self.leader = Replica(host, host.spawn(
            f"pollux primary --listen 0.0.0.0:{LINK_PORT} {self._shared_words()} {self._machine_words(())}"
            f" {self._disk_words()} --net tap=tap0,mac={GUEST_MAC}", "primary"))

    def guest_console(self, host: Host) -> str:
        return host.get("/root/console").decode(errors="replace")
