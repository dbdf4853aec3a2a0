#!/usr/bin/python3
"""Deterministic guests, unprotected, under copy and in lockstep: their primary is killed, and what the backup goes on to
print and to write is what an undisturbed run does."""
import os
import re
import subprocess
import unittest
from pathlib import Path

from processes import POLLUX, Processes

GUESTS = Path(os.environ["POLLUX_GUESTS"])
DISK_BYTES = 8 << 20


STRATEGIES = {"copy": (), "lockstep": ("--strategy", "lockstep")}


class GuestsOutlive(Processes):
    def machine(self, guest: str, parameters: str, disk: str, console: str) -> list[str]:
        image = self.folder / disk
        image.write_bytes(bytes(DISK_BYTES))
        return ["--profile", "deterministic", "--epoch-length", "50000", "--kernel", str(GUESTS / guest), "--cmdline",
                parameters, "--memory", "64M", "--disk", str(image), "--console", f"file={self.folder / console}"]

    def outlives_its_primary(self, guest: str, parameters: str):
        for strategy, words in STRATEGIES.items():
            with self.subTest(strategy=strategy):
                self.doCleanups()
                self.setUp()
                self.outlives(guest, parameters, words)

    def outlives(self, guest: str, parameters: str, strategy: tuple[str, ...]):
        undisturbed = self.machine(guest, parameters, "disk-0", "console-0")
        subprocess.run([POLLUX, "vm", *undisturbed], check=True, timeout=60, stderr=subprocess.DEVNULL)
        (self.folder / "disk-b").write_bytes(os.urandom(DISK_BYTES))
        backup = self.start("backup", "backup", "--listen", "127.0.0.1:0", "--key", str(self.folder / "b"), "--peer-key",
                            str(self.folder / "a.pub"), "--arbiter", "none", "--disk", str(self.folder / "disk-b"),
                            "--console", f"file={self.folder / 'console-b'}")
        port = self.wait_for("backup", r"port (\d+)").group(1)
        primary = self.start("primary", "primary", "--backup", f"127.0.0.1:{port}", "--key", str(self.folder / "a"),
                             "--peer-key", str(self.folder / "b.pub"), "--arbiter", "none", *strategy,
                             *self.machine(guest, parameters, "disk-a", "console-a"))
        self.wait_for("primary", "protecting")
        self.assertIsNone(primary.poll())
        primary.kill()
        self.wait_for("backup", "runs unprotected now")
        self.assertEqual(backup.wait(60), 0, (self.folder / "backup").read_text() + (self.folder / "console-b").read_text())
        expected = self.printed("console-0")
        after = self.printed("console-b")
        self.assertTrue(after, "the guest is too short for this test")
        self.assertTrue(expected.endswith(after), f"{after} does not end {expected}")
        self.assertEqual((self.folder / "disk-b").read_bytes(), (self.folder / "disk-0").read_bytes())

    def printed(self, console: str) -> bytes:
        """But for how often the disk's driver repeated a request: requests under way at the promotion are uncertain (P7)."""
        return re.sub(rb", repeated \d+", b"", (self.folder / console).read_bytes())

    def test_memory_writes(self):
        self.outlives_its_primary("memory_writer", "pages=500 rounds=900000")

    def test_a_timer(self):
        self.outlives_its_primary("idle", "ticks=40 period_ms=50")

    def test_a_computation(self):
        self.outlives_its_primary("compute", "kernel=copying rounds=200")

    def test_disk_writes(self):
        self.outlives_its_primary("disk_check", "blocks=2000 rounds=90")


if __name__ == "__main__":
    unittest.main(verbosity=2)
