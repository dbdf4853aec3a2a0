#!/usr/bin/python3
"""The lab's chaos report, made of a campaign that nobody ran."""
import json
import re
import sys
import tempfile
import unittest
from pathlib import Path

sys.dont_write_bytecode = True

import paths
from chaos_report import MARK, PAGE, ChaosReport
from redis_client import Acknowledged


class Report(unittest.TestCase):
    def write(self, report: ChaosReport, journal: list[Acknowledged]) -> tuple[dict, str]:
        with tempfile.TemporaryDirectory() as folder:
            report.write(Path(folder), journal)
            return json.loads(Path(folder, "report.json").read_text()), Path(folder, "report.html").read_text()

    def report(self) -> tuple[ChaosReport, list[Acknowledged]]:
        report = ChaosReport(["castor", "pollux"], 5, ["switchover", "reset-of-the-leader"], "the same again")
        report.role("castor", "primary, protected")
        report.role("pollux", "backup")
        report.epoch("castor", 17)
        report.strike("reset-of-the-leader", "castor")
        report.role("castor", "down")
        report.is_over("castor", "pollux")
        report.is_protected_again()
        zero = report._zero
        return report, [Acknowledged(("INCR", "x"), 1, zero - 3, zero - 1), Acknowledged(("INCR", "x"), 2, zero, zero + 0.25)]

    def test_it_holds_what_happened(self):
        data, _ = self.write(*self.report())
        self.assertTrue(data["passed"])
        self.assertEqual(data["faults_planned"], 2)
        self.assertEqual([fault["kind"] for fault in data["faults"]], ["reset-of-the-leader"])
        self.assertEqual(data["faults"][0]["failover"]["to"], "pollux")
        self.assertEqual([(span["host"], span["role"]) for span in data["roles"]],
                         [("castor", "primary, protected"), ("pollux", "backup"), ("castor", "down")])
        self.assertEqual(data["summary"]["requests"], 2)
        self.assertEqual(data["summary"]["latency"]["max_ms"], 2000)
        self.assertEqual(data["summary"]["longest_silence_ms"], 1250)
        self.assertEqual(data["epochs"][0][1:], [0, 17])

    def test_it_has_everything_that_the_page_shows(self):
        data, page = self.write(*self.report())
        shown = set(re.findall(r"\brun\.([a-z_]+)", (paths.repository() / PAGE).read_text()))
        self.assertGreater(len(shown), 10)
        self.assertEqual(shown - set(data), set())
        self.assertNotIn(MARK, page)
        self.assertIn('"seed": 5', page)

    def test_a_failure_is_a_violation(self):
        report, journal = self.report()
        with self.assertRaises(ValueError), report.violations("promises"):
            raise ValueError("the disks differ </script>")
        data, page = self.write(report, journal)
        self.assertFalse(data["passed"])
        self.assertEqual(data["violations"], [{"check": "promises", "evidence": "ValueError: the disks differ </script>"}])
        self.assertNotIn("differ </script>", page)


if __name__ == "__main__":
    unittest.main(verbosity=2)
