#!/usr/bin/python3
"""A backup whose process stands still for a while must not take that for the primary's silence and promote."""
import os
import re
import signal
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

POLLUX = os.environ["POLLUX_BIN"]
GUEST = os.environ["POLLUX_PAGE_WRITER"]


class Stall(unittest.TestCase):
    def start(self, log: str, *words: str) -> subprocess.Popen:
        with open(self.folder / log, "wb") as output:
            process = subprocess.Popen([POLLUX, *words], stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def wait_for(self, log: str, pattern: str) -> re.Match:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if found := re.search(pattern, (self.folder / log).read_text()):
                return found
            time.sleep(0.05)
        self.fail(f"{log} does not show {pattern}: {(self.folder / log).read_text()}")

    def setUp(self):
        if not os.access("/dev/kvm", os.R_OK | os.W_OK):
            self.skipTest("/dev/kvm cannot be used")
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        for name in "ab":
            subprocess.run([POLLUX, "keygen", self.folder / name], check=True, stdout=subprocess.DEVNULL)

    def test_a_stalled_backup_does_not_promote(self):
        a, b = str(self.folder / "a"), str(self.folder / "b")
        backup = self.start("backup", "backup", "--listen", "127.0.0.1:0", "--key", b, "--peer-key", a + ".pub",
                            "--timeout-ms", "300", "--heartbeat-ms", "50")
        port = self.wait_for("backup", r"port (\d+)").group(1)
        primary = self.start("primary", "primary", "--backup", f"127.0.0.1:{port}", "--key", a, "--peer-key", b + ".pub",
                             "--kernel", GUEST, "--memory", "64M", "--console", "none", "--timeout-ms", "10000")
        self.wait_for("primary", "protecting")
        for _ in range(8):
            backup.send_signal(signal.SIGSTOP)
            time.sleep(0.6)  # the stall itself: twice the timeout
            backup.send_signal(signal.SIGCONT)
            time.sleep(0.3)
            self.assertIsNone(backup.poll(), (self.folder / "backup").read_text())
        self.assertNotIn("failover", (self.folder / "backup").read_text())
        # Still protecting: now the primary does die.
        primary.kill()
        self.wait_for("backup", "failover at the end of epoch")


if __name__ == "__main__":
    unittest.main(verbosity=2)
