#!/usr/bin/python3
"""Deterministic guests, unprotected, under copy and in lockstep: their primary is killed, and what primary and backup print
and write together is what an undisturbed run does.

The guests go on until something is typed at the backup that took over: none can be done before its primary dies. The
undisturbed run does as many rounds as that one then says it did."""
import json
import os
import re
import subprocess
import time
import unittest
from pathlib import Path

from processes import POLLUX, Processes

GUESTS = Path(os.environ["POLLUX_GUESTS"])
DISK_BYTES = 8 << 20
STRATEGIES = {"copy": (), "lockstep": ("--strategy", "lockstep")}
# Seconds; a machine with much else to do is slow, and nothing here depends on how slow.
PATIENCE = 120


class GuestsOutlive(Processes):
    def machine(self, guest: str, parameters: str, disk: str, console: str) -> list[str]:
        image = self.folder / disk
        image.write_bytes(bytes(DISK_BYTES))
        return ["--profile", "deterministic", "--epoch-length", "50000", "--kernel", str(GUESTS / guest), "--cmdline",
                parameters, "--memory", "64M", "--disk", str(image), "--console", f"file={self.folder / console}"]

    def outlives_its_primary(self, guest: str, parameters: str, rounds: str, held: bool = False):
        for strategy, words in STRATEGIES.items():
            with self.subTest(strategy=strategy):
                self.doCleanups()
                self.setUp()
                self.outlives(guest, parameters, rounds, words, held)

    def outlives(self, guest: str, parameters: str, rounds: str, strategy: tuple[str, ...], held: bool):
        (self.folder / "disk-b").write_bytes(os.urandom(DISK_BYTES))
        self.start_protected(guest, f"{parameters} until_told=1", strategy)
        before = len(self.printed("console-a"))
        self.wait_until_printed("console-a", before + 1)
        if held:
            self.hold_primary()
        self.primary.kill()
        self.wait_for("backup", "runs unprotected now")
        self.wait_until_printed("console-b", 1)
        self.backup.stdin.write(b"enough\n")
        self.backup.stdin.close()
        self.assertEqual(self.backup.wait(PATIENCE), 0,
                         (self.folder / "backup").read_text() + (self.folder / "console-b").read_text())

        first, second = self.printed("console-a"), self.printed("console-b")
        told = re.search(rb"told after (\d+) rounds\n", second)
        self.assertIsNotNone(told, second)
        second = second.replace(told.group(0), b"")
        undisturbed = self.machine(guest, f"{parameters} {rounds}={int(told.group(1))}", "disk-0", "console-0")
        subprocess.run([POLLUX, "vm", *undisturbed], check=True, timeout=PATIENCE, stderr=subprocess.DEVNULL)
        self.check_output(self.printed("console-0"), first, second, held)
        self.assertEqual((self.folder / "disk-b").read_bytes(), (self.folder / "disk-0").read_bytes())

    def start_protected(self, guest: str, parameters: str, strategy: tuple[str, ...]):
        self.backup = self.start("backup", "backup", "--listen", "127.0.0.1:0", "--key", str(self.folder / "b"), "--peer-key",
                                 str(self.folder / "a.pub"), "--arbiter", "none", "--disk", str(self.folder / "disk-b"),
                                 "--console", f"file={self.folder / 'console-b'}", "--virtio-console", "stdio",
                                 stdin=subprocess.PIPE)
        port = self.wait_for("backup", r"port (\d+)").group(1)
        self.primary = self.start("primary", "primary", "--backup", f"127.0.0.1:{port}", "--key", str(self.folder / "a"),
                                  "--peer-key", str(self.folder / "b.pub"), "--arbiter", "none", "--control",
                                  str(self.folder / "a.sock"), *strategy,
                                  *self.machine(guest, parameters, "disk-a", "console-a"))
        self.wait_for("primary", "protecting")

    def wait_until_printed(self, console: str, count: int):
        deadline = time.monotonic() + PATIENCE
        while len(self.printed(console)) < count:
            self.assertLess(time.monotonic(), deadline, f"nothing more on {console}")
            time.sleep(0.02)

    def ctl(self, *words: str) -> str:
        return subprocess.run([POLLUX, "ctl", "--socket", self.folder / "a.sock", *words], timeout=PATIENCE, check=True,
                              stdin=subprocess.DEVNULL, capture_output=True, text=True).stdout

    def hold_primary(self):
        """Stands still, and has let all its outputs out."""
        self.ctl("pause")
        deadline = time.monotonic() + PATIENCE
        while True:
            status = json.loads(self.ctl("--json", "status"))["status"]
            if status["guest"] == "paused" and status["committed"] == status["epoch"]:
                return
            self.assertLess(time.monotonic(), deadline, status)
            time.sleep(0.05)

    def check_output(self, expected: bytes, first: bytes, second: bytes, held: bool):
        """In order, and nothing twice. What the primary had not let out yet when it died, of epochs that the backup had
        acknowledged, nobody prints: as frames, it is lost with its host. A primary that was held had let all of it out."""
        self.assertTrue(expected.startswith(first), f"{expected} does not begin with {first}")
        self.assertTrue(expected.endswith(second), f"{expected} does not end with {second}")
        if held:
            self.assertEqual(first + second, expected)
        else:
            self.assertLessEqual(len(first) + len(second), len(expected), f"{second} repeats something of {first}")

    def printed(self, console: str) -> bytes:
        """But for how often the disk's driver repeated a request: requests under way at the promotion are uncertain (P7)."""
        path = self.folder / console
        return re.sub(rb", repeated \d+", b"", path.read_bytes()) if path.exists() else b""

    def test_memory_writes(self):
        self.outlives_its_primary("memory_writer", "pages=500 told=100", "rounds")

    def test_a_timer(self):
        self.outlives_its_primary("idle", "period_ms=10", "ticks")

    def test_every_computation(self):
        self.outlives_its_primary("compute", "", "repeat")

    def test_disk_writes(self):
        self.outlives_its_primary("disk_check", "blocks=200", "rounds")

    def test_of_a_guest_that_was_held_all_is_printed(self):
        self.outlives_its_primary("memory_writer", "pages=500 told=100", "rounds", held=True)


if __name__ == "__main__":
    unittest.main(verbosity=2)
