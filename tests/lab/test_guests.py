#!/usr/bin/python3
"""Lockstep guests go through the same states, register by register and byte by byte, on every kind of host: this one's
KVM, and an emulated SVM host with nested and with shadow paging."""
import os
import subprocess
import sys
import unittest
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

import namespace

if __name__ == "__main__":
    namespace.enter()

import paths
from kvm_device import needs_kvm
from lab import Lab

BUILD = paths.repository() / "build/release"
PROGRAM = Path(os.environ.get("POLLUX_GUEST_STATES") or BUILD / "tests/kvm/guest_states")
GUESTS = Path(os.environ.get("POLLUX_GUESTS") or BUILD / "tests/guests/lockstep")

# Guest, sites per epoch, command line.
RUNS = [("compute", 1009, ""), ("shapes", 7, ""), ("runtime_check", 5000, "first=1 text=abc number=42 last="),
        ("disk_check", 2003, "blocks=300"), ("memory_writer", 997, "pages=500 pause_ms=2"), ("idle", 100, "ticks=20 period_ms=5")]


def here(guest: str, sites: int, words: str) -> str:
    command = [PROGRAM, GUESTS / guest, str(sites), words]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


class Guests(unittest.TestCase):
    npt = True

    @needs_kvm  # to compare with
    def test_same_states_as_on_this_host(self):
        with Lab("guests", say=lambda line: None) as lab:
            castor = lab.start_host("castor", npt=self.npt)
            castor.put(PROGRAM, "/root/guest_states", mode="755")
            for guest in sorted({guest for guest, _, _ in RUNS}):
                castor.put(GUESTS / guest, f"/root/{guest}")
            castor.put(GUESTS / "misbehave", "/root/misbehave")
            refused = castor.run("/root/guest_states /root/misbehave 1000 what=rdtsc", timeout=180, check=False).output
            there = {run: castor.run(f"/root/guest_states /root/{run[0]} {run[1]} '{run[2]}'", timeout=180).output
                     for run in RUNS}
        # Emulated SVM honours CR4.TSD: reading the time stamp counter is exception 13.
        self.assertIn("the guest failed with code 0x20d", refused)
        for run in RUNS:
            with self.subTest(guest=run[0]):
                self.assertEqual(there[run], here(*run))


class GuestsOnShadowPaging(Guests):
    npt = False


if __name__ == "__main__":
    unittest.main(verbosity=2)
