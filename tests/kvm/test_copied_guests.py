#!/usr/bin/python3
"""Deterministic guests under the copy strategy: their primary is killed, and what the backup goes on to print and to write
is what an undisturbed run does."""
import os
import subprocess
import unittest
from pathlib import Path

from processes import POLLUX, Processes

GUESTS = Path(os.environ["POLLUX_GUESTS"])
DISK_BYTES = 8 << 20


class CopiedGuests(Processes):
    def machine(self, guest: str, parameters: str, disk: str, console: str) -> list[str]:
        image = self.folder / disk
        image.write_bytes(bytes(DISK_BYTES))
        return ["--profile", "deterministic", "--epoch-length", "50000", "--kernel", str(GUESTS / guest), "--cmdline",
                parameters, "--memory", "64M", "--disk", str(image), "--console", f"file={self.folder / console}"]

    def outlives_its_primary(self, guest: str, parameters: str):
        undisturbed = self.machine(guest, parameters, "disk-0", "console-0")
        subprocess.run([POLLUX, "vm", *undisturbed], check=True, timeout=60, stderr=subprocess.DEVNULL)
        (self.folder / "disk-b").write_bytes(os.urandom(DISK_BYTES))
        backup = self.start("backup", "backup", "--listen", "127.0.0.1:0", "--key", str(self.folder / "b"), "--peer-key",
                            str(self.folder / "a.pub"), "--arbiter", "none", "--disk", str(self.folder / "disk-b"),
                            "--console", f"file={self.folder / 'console-b'}")
        port = self.wait_for("backup", r"port (\d+)").group(1)
        primary = self.start("primary", "primary", "--backup", f"127.0.0.1:{port}", "--key", str(self.folder / "a"),
                             "--peer-key", str(self.folder / "b.pub"), "--arbiter", "none",
                             *self.machine(guest, parameters, "disk-a", "console-a"))
        self.wait_for("primary", "protecting")
        self.assertIsNone(primary.poll())
        primary.kill()
        self.wait_for("backup", "runs unprotected now")
        self.assertEqual(backup.wait(60), 0, (self.folder / "backup").read_text() + (self.folder / "console-b").read_text())
        expected = (self.folder / "console-0").read_bytes()
        after = (self.folder / "console-b").read_bytes()
        self.assertTrue(after, "the guest is too short for this test")
        self.assertTrue(expected.endswith(after), f"{after} does not end {expected}")
        self.assertEqual((self.folder / "disk-b").read_bytes(), (self.folder / "disk-0").read_bytes())

    def test_a_computation(self):
        self.outlives_its_primary("compute", "kernel=copying rounds=300")

    def test_disk_writes(self):
        self.outlives_its_primary("disk_check", "blocks=2000 rounds=120")


if __name__ == "__main__":
    unittest.main(verbosity=2)
