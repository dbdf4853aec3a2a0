"""Primaries and backups as processes on this host, for the tests beside this file."""
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

import kvm_device

POLLUX = os.environ["POLLUX_BIN"]
GUEST = os.environ["POLLUX_PAGE_WRITER"]


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on, at this moment."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Processes(unittest.TestCase):
    def start(self, log: str, *words: str, stdin=subprocess.DEVNULL) -> subprocess.Popen:
        with open(self.folder / log, "wb") as output:
            process = subprocess.Popen([POLLUX, *words], stdin=stdin, stdout=output, stderr=output)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def wait_until(self, condition):
        deadline = time.monotonic() + 60
        while not condition():
            self.assertLess(time.monotonic(), deadline, "it does not come about within a minute")
            time.sleep(0.05)

    def wait_for(self, log: str, pattern: str, timeout: float = 60) -> re.Match:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if found := re.search(pattern, (self.folder / log).read_text()):
                return found
            time.sleep(0.05)
        self.fail(f"{log} does not show {pattern}: {(self.folder / log).read_text()}")

    def setUp(self):
        if why := kvm_device.why_not():
            self.skipTest(why)
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        for name in "ab":
            subprocess.run([POLLUX, "keygen", self.folder / name], check=True, stdout=subprocess.DEVNULL)

    def file_arbiter(self) -> str:
        claims = self.folder / "claims"
        claims.mkdir()
        return f"file:{claims}"

    # Hosts are a and b: each has its key and its port, and knows the other's.

    def host_words(self, host: str) -> tuple[str, ...]:
        own, other = self.folder / host, self.folder / ("b" if host == "a" else "a")
        return ("--key", str(own), "--peer-key", f"{other}.pub", "--listen", f"127.0.0.1:{self.ports[host]}",
                "--arbiter", self.arbiter, "--heartbeat-ms", "50", "--timeout-ms", "2000")

    def start_primary_alone(self, *words: str):
        self.ports = dict(zip("ab", free_ports(2)))
        self.arbiter = self.file_arbiter()
        primary = self.start("primary", "primary", *self.host_words("a"), "--kernel", GUEST, "--memory", "64M",
                             "--console", "none", *words)
        self.wait_for("primary", "backups may join")
        return primary

    def join(self, log: str, host: str, *words: str) -> subprocess.Popen:
        other = "b" if host == "a" else "a"
        return self.start(log, "backup", "--join", f"127.0.0.1:{self.ports[other]}", *self.host_words(host), *words)

    def claims(self) -> list[int]:
        return sorted(int(path.name.rsplit(".", 1)[1]) for path in (self.folder / "claims").glob("[0-9a-f]*.*"))

    def start_etcd(self) -> subprocess.Popen:
        client, peer = f"http://127.0.0.1:{self.etcd_ports[0]}", f"http://127.0.0.1:{self.etcd_ports[1]}"
        words = ["etcd", "--data-dir", self.folder / "etcd-data", "--listen-client-urls", client,
                 "--advertise-client-urls", client, "--listen-peer-urls", peer,
                 "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}"]
        with open(self.folder / "etcd", "ab") as output:
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process
