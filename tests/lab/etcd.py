"""The lab's arbiter: a real etcd on the client's side of the LAN, the third place that survives either host."""
import json
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import namespace
from machine import LabError, fresh_file, wait_until
from settings import CLIENT_IP

CLIENT_PORT, PEER_PORT = 2379, 2380


class Etcd:
    """One member, its data in the run's folder. It dies with this program."""
    name = "etcd"
    url = f"http://{CLIENT_IP}:{CLIENT_PORT}"

    def __init__(self, folder: Path):
        self.log = fresh_file(folder, self.name, ".log")
        peer = f"http://127.0.0.1:{PEER_PORT}"
        command = ["etcd", "--data-dir", folder / "etcd-data", "--listen-client-urls", self.url,
                   "--advertise-client-urls", self.url, "--listen-peer-urls", peer,
                   "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}"]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                            preexec_fn=namespace.die_with_parent)

    def wait_ready(self, timeout: float = 60) -> "Etcd":
        wait_until(self._healthy, timeout, f"etcd serves at {self.url} (log: {self.log})")
        return self

    def _healthy(self) -> bool:
        if not self.running:
            raise LabError(f"etcd ended (log: {self.log})")
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=2) as answer:
                return json.load(answer)["health"] == "true"
        except (urllib.error.URLError, OSError, ValueError, KeyError):
            return False

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def power_off(self):
        if self.running:
            self.process.kill()
        self.process.wait()
