#!/usr/bin/python3
"""Lockstep between processes on this host: a guest that writes and verifies a disk moves from host to host, by deaths and
by orders, and its disk is the same everywhere."""
import json
import os
import re
import signal
import subprocess
import time
import unittest

from processes import POLLUX, Processes, free_ports

GUESTS = os.environ["POLLUX_GUESTS"]


def make_sites_loop(pid: int) -> int:
    """As a fault of its memory might, in the RAM of this process's guest: where it counts it jumps to itself."""
    site, loop = bytes.fromhex("4983ef01"), bytes.fromhex("ebfe")  # subq $1, %r15; jmp .
    found = 0
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        for line in maps:
            start, end = (int(address, 16) for address in line.split()[0].split("-"))
            if end - start != 32 << 20 or not line.split()[1].startswith("rw"):
                continue
            memory.seek(start)
            content = memory.read(end - start)
            for match in re.finditer(re.escape(site), content):
                memory.seek(start + match.start())
                memory.write(loop)
                found += 1
    return found


class Lockstep(Processes):
    ROUNDS = 600

    def setUp(self):
        super().setUp()
        self.ports = dict(zip("ab", free_ports(2)))
        self.arbiter = self.file_arbiter()
        self.disks = {host: self.folder / f"disk-{host}" for host in "ab"}
        for disk in self.disks.values():
            disk.write_bytes(os.urandom(1 << 20))

    def control(self, host: str) -> tuple[str, str]:
        return "--control", str(self.folder / f"{host}.sock")

    def host(self, host: str, console: str) -> tuple[str, ...]:
        return ("--disk", str(self.disks[host]), "--console", f"file={self.folder / console}", "--epoch-length", "20000",
                *self.control(host))

    def lead(self, *words: str) -> subprocess.Popen:
        primary = self.start("primary", "primary", *self.host_words("a"), "--profile", "deterministic", "--strategy",
                             "lockstep", "--kernel", f"{GUESTS}/disk_check", "--cmdline",
                             f"blocks=256 rounds={self.ROUNDS}", "--memory", "32M", *self.host("a", "console-1"), *words)
        self.wait_for("primary", "backups may join")
        return primary

    def follow(self, log: str, host: str, console: str, *words: str) -> subprocess.Popen:
        return self.join(log, host, *self.host(host, console), *words)

    def wait_for_console(self, console: str):
        """Something was printed: some round was written, read and verified there."""
        path = self.folder / console
        deadline = time.monotonic() + 60
        while not (path.exists() and "round " in path.read_text()):
            self.assertLess(time.monotonic(), deadline, f"nothing on {console}")
            time.sleep(0.02)

    def check_the_end(self, last: subprocess.Popen, log: str, consoles: list[str]):
        self.assertEqual(last.wait(120), 0, (self.folder / log).read_text())
        printed = "".join((self.folder / console).read_text() for console in consoles)
        self.assertRegex(printed, r"disk_check done, repeated \d+\n$")
        rounds = [int(number) for number in re.findall(r"^round (\d+) ", printed, re.MULTILINE)]
        self.assertEqual(rounds[-1], self.ROUNDS - 1)
        self.assertEqual(rounds, sorted(set(rounds)), "a round was told twice, or out of order")

    def verify(self, host: str):
        """Another guest reads what is on the disk there."""
        done = subprocess.run([POLLUX, "vm", "--profile", "deterministic", "--kernel", f"{GUESTS}/disk_check", "--cmdline",
                               f"blocks=256 rounds={self.ROUNDS} verify=1", "--memory", "32M", "--disk", self.disks[host],
                               "--console", f"file={self.folder / 'verify'}"], stdin=subprocess.DEVNULL, timeout=60)
        self.assertEqual(done.returncode, 0, (self.folder / "verify").read_text())

    def test_a_disk_survives_its_hosts_one_after_the_other(self):
        for commit in ("on-output", "every-epoch"):
            with self.subTest(commit=commit):
                self.doCleanups()
                self.setUp()
                leader, led_by = self.lead("--commit", commit), "primary"
                consoles = ["console-1"]
                for term, host in enumerate("bab", start=2):
                    log, console = f"{host}-{term}", f"console-{term}"
                    follower = self.follow(log, host, console, "--commit", commit)
                    self.wait_for(led_by, r"backup \d+: protecting")
                    time.sleep(0.3)  # some epochs: nothing depends on how many
                    leader.kill()
                    leader.wait()
                    self.wait_for(log, "runs unprotected now")
                    self.wait_for_console(console)
                    consoles.append(console)
                    leader, led_by = follower, log
                self.assertEqual(self.claims(), [1, 2, 3, 4])
                self.check_the_end(leader, led_by, consoles)
                self.verify("b")

    def test_protected_to_the_end_both_disks_are_the_same(self):
        stats = self.folder / "stats"
        leader = self.lead("--stats", str(stats), "--max-lag", "8")
        follower = self.follow("follower", "b", "console-2")
        self.wait_for("primary", r"backup \d+: protecting")
        self.check_the_end(leader, "primary", ["console-1"])
        self.assertEqual(follower.wait(30), 0, (self.folder / "follower").read_text())
        self.assertEqual((self.folder / "console-2").read_text(), "")
        self.assertEqual(self.disks["a"].read_bytes(), self.disks["b"].read_bytes())
        self.verify("b")
        told = json.loads(stats.read_text())
        self.assertGreater(told["epochs"], 100)
        self.assertEqual(told["divergences"], 0)
        self.assertLessEqual(told["lag_epochs_max"], 8)
        self.assertGreater(told["log_bytes_total"], 0)

    def lead_and_follow_patiently(self) -> tuple[subprocess.Popen, subprocess.Popen]:
        """A guest that computes without end, on hosts that wait a minute for each other."""
        def patient(host: str) -> list[str]:
            words = list(self.host_words(host))
            words[words.index("--timeout-ms") + 1] = "60000"
            return words
        primary = self.start("primary", "primary", *patient("a"), "--profile", "deterministic", "--strategy",
                             "lockstep", "--kernel", f"{GUESTS}/memory_writer", "--cmdline",
                             "pages=100 rounds=1000000000 told=10000", "--memory", "32M", "--epoch-length", "1000000",
                             "--console", f"file={self.folder / 'console-1'}")
        self.wait_for("primary", "backups may join")
        backup = self.start("backup", "backup", "--join", f"127.0.0.1:{self.ports['a']}", *patient("b"), "--console", "none")
        self.wait_for("primary", r"backup \d+: protecting")
        self.wait_for_console("console-1")
        return primary, backup

    def check_it_goes_on(self, primary: subprocess.Popen, backup: subprocess.Popen):
        printed = (self.folder / "console-1").stat().st_size
        deadline = time.monotonic() + 60
        while (self.folder / "console-1").stat().st_size <= printed + 1000:
            self.assertIsNone(primary.poll(), (self.folder / "primary").read_text())
            self.assertLess(time.monotonic(), deadline, "the guest does not go on")
            time.sleep(0.02)
        self.assertIsNone(backup.poll(), (self.folder / "backup").read_text())

    def test_a_primary_that_stood_still_in_an_epoch_goes_on(self):
        """For longer than a guest may take for an epoch (10 s): the time was not the guest's."""
        primary, backup = self.lead_and_follow_patiently()
        primary.send_signal(signal.SIGSTOP)
        time.sleep(11)  # what is tested
        primary.send_signal(signal.SIGCONT)
        self.check_it_goes_on(primary, backup)

    def test_a_backup_whose_guest_comes_to_no_epochs_end_is_healed(self):
        """And does not hold up the primary's guest for ever: after 10 s of its time it has diverged."""
        primary, backup = self.lead_and_follow_patiently()
        self.assertGreater(make_sites_loop(backup.pid), 0)
        self.wait_for("backup", "diverged in epoch .*it does not end", timeout=200)
        self.wait_for("primary", "healed with")
        self.check_it_goes_on(primary, backup)

    def ctl(self, host: str, *words: str) -> str:
        result = subprocess.run([POLLUX, "ctl", "--socket", self.folder / f"{host}.sock", *words], timeout=90,
                                stdin=subprocess.DEVNULL, capture_output=True, text=True)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        return result.stdout

    def test_orders_hold_it_and_move_it(self):
        rejoin = {"a": ("--rejoin", f"127.0.0.1:{self.ports['b']}"), "b": ("--rejoin", f"127.0.0.1:{self.ports['a']}")}
        leader = self.lead(*rejoin["a"])
        follower = self.follow("follower", "b", "console-2", *rejoin["b"])
        self.wait_for("primary", r"backup \d+: protecting")
        self.ctl("a", "pause")
        self.assertIn("paused", self.ctl("a", "status"))
        self.ctl("a", "resume")
        self.ctl("a", "switchover")
        self.wait_for("follower", r"backup \d+: protecting")
        self.wait_for_console("console-2")
        self.ctl("b", "switchover")
        self.wait_for("primary", r"(?s)backup \d+: protecting.*backup \d+: protecting")
        self.assertEqual(leader.wait(120), 0, (self.folder / "primary").read_text())
        self.assertEqual(follower.wait(30), 0, (self.folder / "follower").read_text())
        self.assertRegex((self.folder / "console-1").read_text(), r"disk_check done, repeated \d+\n$")
        self.assertEqual(self.disks["a"].read_bytes(), self.disks["b"].read_bytes())
        self.verify("a")


if __name__ == "__main__":
    unittest.main(verbosity=2)
