"""The lab's guest under Pollux: on castor as the primary, protected by pollux. Used by the demo and the tests."""
import json
import subprocess
import tempfile
from pathlib import Path

import paths
from lab import GUEST_IP, HOST_IPS, Host, Job, Lab, LabError, guest_cmdline

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


class ProtectedGuest:
    """Starts both sides; each step can also be taken alone."""

    def __init__(self, lab: Lab, *, epoch_ms: int = EPOCH_MS, timeout_ms: int = TIMEOUT_MS):
        self.lab, self.epoch_ms, self.timeout_ms = lab, epoch_ms, timeout_ms
        self.disks = {name: lab.copy_disk(paths.GUEST_ROOT, f"{name}.raw") for name in HOST_IPS}
        self.castor: Host
        self.pollux: Host
        self.primary: Job
        self.backup: Job

    def start_hosts(self):
        self.castor, self.pollux = self.lab.start_hosts({name: [disk] for name, disk in self.disks.items()})
        keys = make_keys(HOST_IPS)
        for host, peer in ((self.castor, self.pollux), (self.pollux, self.castor)):
            secret, _ = keys[host.name]
            _, peer_public = keys[peer.name]
            host.put(secret, "/root/key", mode="600")
            host.put(peer_public, "/root/peer.pub")
            host.add_tap("tap0")

    def start_backup(self):
        self.backup = self.pollux.spawn(
            f"pollux backup --listen 0.0.0.0:{LINK_PORT} --key /root/key --peer-key /root/peer.pub --arbiter none"
            f" --disk /dev/vda --net tap=tap0 --console file=/root/console"
            f" --timeout-ms {self.timeout_ms} --timeline /root/timeline.json", "backup")
        self.backup.wait_for("listening", 60)

    def start_primary(self, *kernel_words: str):
        self.primary = self.castor.spawn(
            f"pollux primary --backup {HOST_IPS['pollux']}:{LINK_PORT} --key /root/key --peer-key /root/peer.pub --arbiter none"
            f" --kernel /guest/vmlinuz --initrd /guest/initrd.cpio --cmdline '{guest_cmdline(*kernel_words)}'"
            f" --memory {GUEST_MEMORY} --disk /dev/vda --net tap=tap0,mac={GUEST_MAC} --console file=/root/console"
            f" --epoch-ms {self.epoch_ms} --timeout-ms {self.timeout_ms} --staging 64M --stats /root/stats.json",
            "primary")

    def wait_until_protected(self, timeout: float = 120):
        self.primary.wait_for("protecting", timeout)

    def statistics(self) -> dict:
        return json.loads(self.castor.get("/root/stats.json"))

    def wait_until_promoted(self, timeout: float = 60) -> dict:
        """The failover's timeline."""
        self.backup.wait_for("runs unprotected now", timeout)
        return json.loads(self.pollux.get("/root/timeline.json"))

    def guest_console(self, host: Host) -> str:
        return host.get("/root/console").decode(errors="replace")
