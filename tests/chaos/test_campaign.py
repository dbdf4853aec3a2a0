#!/usr/bin/python3
"""A short campaign of all faults, as the command runs it, and what it leaves behind."""
import json
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

from kvm_device import needs_kvm

POLLUX = os.environ["POLLUX_BIN"]
GUEST = os.environ["POLLUX_KV_SERVER"]
ALL_FAULTS = "kill,pause,partition,one-way,latency,bandwidth,corrupt,disconnect,arbiter,kill-in-sync,switchover,kill-in-switchover," \
             "disk-error,disk-full,disk-slow,memory,disk-read-error,kill-in-promotion"


def chaos(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([POLLUX, "chaos", "run", *words], capture_output=True, text=True, timeout=500)


class Campaign(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="pollux-chaos-")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    @needs_kvm
    def test_all_faults_and_every_promise_held(self):
        done = chaos("--seed", "4", "--duration", "45", "--guest", GUEST, "--report", str(self.folder))
        logs = "\n".join(f"== {log.name}\n{log.read_text()}" for log in sorted(self.folder.glob("run/*.log")))
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr + logs)
        report = json.loads((self.folder / "report.json").read_text())
        self.assertTrue(report["passed"])
        self.assertEqual(report["violations"], [])
        self.assertEqual(len(report["faults"]), report["faults_planned"])
        self.assertTrue(all("protected_again_s" in fault for fault in report["faults"]))
        self.assertEqual(report["faults_enabled"], ALL_FAULTS)
        self.assertGreater(report["summary"]["failover"]["count"], 0)
        self.assertGreater(report["summary"]["requests"], 100)
        self.assertEqual(report["summary"]["unanswered"], 0)
        self.assertGreaterEqual(report["captured_answers"], report["summary"]["requests"])
        page = (self.folder / "report.html").read_text()
        self.assertIn('"seed":4', page)
        self.assertNotIn("src=", page)

    @needs_kvm
    def test_both_hosts_lost_in_a_promotion_cost_nothing_acknowledged(self):
        done = chaos("--seed", "1", "--duration", "8", "--faults", "kill-in-promotion", "--guest", GUEST, "--report", str(self.folder))
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        report = json.loads((self.folder / "report.json").read_text())
        self.assertGreater(len(report["faults"]), 0)
        for fault in report["faults"]:
            self.assertIn("booted anew from the disk of", fault["note"])
            self.assertNotIn("failover", fault)

    @needs_kvm
    def test_lockstep(self):
        done = chaos("--strategy", "lockstep", "--seed", "3", "--duration", "15", "--faults", "kill,pause,partition,switchover",
                     "--guest", GUEST, "--report", str(self.folder))
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    @needs_kvm
    def test_what_once_found_something(self):
        lines = (Path(__file__).parent / "regressions.txt").read_text().splitlines()
        campaigns = [line.split() for line in lines if line and not line.startswith("#")]
        self.assertTrue(campaigns, "regressions.txt is empty")
        for words in campaigns:
            with self.subTest(" ".join(words)):
                done = chaos(*words, "--guest", GUEST, "--report", str(self.folder))
                self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    @needs_kvm
    def test_two_machines_where_nobody_arbitrates_are_found(self):
        done = chaos("--seed", "1", "--duration", "12", "--faults", "partition", "--without-arbiter", "--recovery-s", "5",
                     "--guest", GUEST, "--report", str(self.folder))
        self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
        report = json.loads((self.folder / "report.json").read_text())
        checks = {violation["check"]: violation["evidence"] for violation in report["violations"]}
        self.assertIn("one answers per term", checks, done.stdout)
        # Both won term 2, or one answered in term 1 after the other had won term 2: whichever is seen first.
        self.assertRegex(checks["one answers per term"], "castor-1 .*pollux-1|pollux-1.* castor-1")
        self.assertIn("recovery", checks)
        self.assertIn("--seed 1 ", done.stdout)
        self.assertIn("pollux chaos run --seed 1 --duration 12 --faults partition", done.stdout)

    def test_a_part_of_a_schedule_is_run_and_repeated(self):
        words = ("--seed", "42", "--duration", "720", "--faults", "kill,pause,partition", "--only", "58..59")
        listed = chaos("--list", *words).stdout.splitlines()
        self.assertEqual(listed, ["1.000 s  kill primary", "2.655 s  pause primary, for 1.698 s"])
        done = chaos(*words, "--guest", GUEST, "--report", str(self.folder))
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        report = json.loads((self.folder / "report.json").read_text())
        self.assertEqual([(fault["number"], fault["what"]) for fault in report["faults"]],
                         [(58, "kill primary"), (59, "pause primary, for 1.698 s")])
        self.assertIn("--only 58..59", report["command"])

    def test_the_list_of_faults_is_the_seeds(self):
        words = ("--list", "--seed", "5", "--duration", "600", "--faults", "pause,kill")
        first = chaos(*words)
        self.assertEqual(first.returncode, 0, first.stderr)
        self.assertGreater(len(first.stdout.splitlines()), 50)
        self.assertEqual(first.stdout, chaos(*words).stdout)

    def test_wrong_options_are_named(self):
        for words, complaint in (
            (("--faults", "earthquake"), "--faults: 'earthquake' is no fault; there are kill"),
            (("--duration", "0"), "--duration: expected 1 to 86400 seconds"),
            (("--clients", "17"), "--clients: expected 1 to 16"),
            (("--only", "3..2"), "--only: expected N or N..M"),
            (("--duration", "5", "--only", "1000"), "--only 1000: the schedule has fewer faults"),
            (("--guest", "/does/not/exist"), "--guest /does/not/exist: no such file"),
        ):
            done = chaos("--report", str(self.folder), *words)
            self.assertEqual(done.returncode, 2, done.stderr)
            self.assertIn(complaint, done.stderr)
            self.assertEqual(len(done.stderr.splitlines()), 1)


if __name__ == "__main__":
    unittest.main(verbosity=2)
