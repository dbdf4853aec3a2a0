#!/usr/bin/python3
"""pollux vm --record and --replay from outside: the same run again, and what is said of logs, disks and kernels that are
not as they were."""
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

from kvm_device import needs_kvm

POLLUX = os.environ["POLLUX_BIN"]
GUESTS = Path(os.environ["POLLUX_GUESTS"])


@needs_kvm
class RecordReplay(unittest.TestCase):
    def setUp(self):
        self.folder = Path(tempfile.mkdtemp(prefix="pollux-record-"))
        self.addCleanup(shutil.rmtree, self.folder)
        self.log = self.folder / "log"
        self.output = self.folder / "output"

    def vm(self, *words, code=0):
        done = subprocess.run([POLLUX, "vm", "--console", f"file={self.output}", *map(str, words)], timeout=60,
                              capture_output=True, text=True)
        self.assertEqual(done.returncode, code, done.stderr)
        return done.stderr

    def recording(self, guest, parameters="", *words):
        return ("--profile", "deterministic", "--epoch-length", "2000", "--kernel", GUESTS / guest, "--cmdline", parameters,
                "--memory", "16M", "--record", self.log, *words)

    def replay(self, *words, code=0):
        return self.vm("--replay", self.log, *words, code=code)

    def refused(self, message, *words):
        error = self.vm(*words, code=2)
        self.assertRegex(error, message)
        self.assertEqual(len(error.strip().splitlines()), 1, error)

    def test_the_same_again(self):
        self.vm(*self.recording("memory_writer", "pages=100 rounds=50 pause_ms=1"))
        printed = self.output.read_bytes()
        self.assertIn(b"memory_writer 0x", printed)
        self.assertRegex(self.replay(), r"all \d+ epochs were the same; then the machine ended")
        self.assertEqual(self.output.read_bytes(), printed)
        self.assertRegex(self.replay("--dirty-log", "ring"), "all .* were the same")

    def test_disks_are_needed_as_they_were(self):
        disk, before = self.folder / "disk", self.folder / "before"
        disk.write_bytes(bytes(2 << 20))
        shutil.copy(disk, before)
        self.vm(*self.recording("disk_check", "blocks=100", "--disk", disk))
        self.refused("--disk .*/disk: not as it was before the recording", "--replay", self.log)
        self.refused("--disk: expected none, or the 1", "--replay", self.log, "--disk", before, "--disk", disk)
        after = before.read_bytes()
        self.assertIn("were the same", self.replay("--disk", before))
        self.assertEqual(before.read_bytes(), after)

    def test_a_snapshot_leaves_the_disk_as_it_was(self):
        disk = self.folder / "disk"
        disk.write_bytes(bytes(2 << 20))
        self.vm(*self.recording("disk_check", "blocks=100", "--disk", disk, "--snapshot"))
        self.assertEqual(disk.read_bytes(), bytes(2 << 20))
        self.assertIn("were the same", self.replay())

    def test_an_interrupted_recording_can_be_repeated(self):
        for number, code in ((signal.SIGINT, 130), (signal.SIGKILL, -9)):
            self.log.unlink(missing_ok=True)
            process = subprocess.Popen([POLLUX, "vm", "--console", f"file={self.output}",
                                        *map(str, self.recording("idle", "ticks=100000 period_ms=1"))],
                                       stderr=subprocess.DEVNULL)
            while not (self.log.exists() and self.log.stat().st_size > 20000):
                self.assertIsNone(process.poll())
                time.sleep(0.01)  # until the condition holds
            process.send_signal(number)
            self.assertEqual(process.wait(30), code)
            if number == signal.SIGINT:
                self.assertRegex(self.replay(), "the recording was stopped")
            else:
                self.assertRegex(self.replay(code=7), "the log was cut off")

    def test_a_damaged_log_is_refused_and_a_cut_one_repeated_as_far_as_it_goes(self):
        self.vm(*self.recording("memory_writer", "pages=100 rounds=50"))
        whole = self.log.read_bytes()
        for at in (0, 9, 15, 30, 60, len(whole) // 3, len(whole) // 2, len(whole) - 3):
            self.log.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1:])
            self.refused(r"--replay .*/log: at byte \d+: |--replay: .*/log: at byte \d+: ", "--replay", self.log)
        for length in (0, 5, 20, 100):
            self.log.write_bytes(whole[:length])
            self.refused(r"at byte \d+: ", "--replay", self.log)
        self.log.write_bytes(whole + b"more")
        self.refused(r"at byte \d+: bytes behind the end", "--replay", self.log)
        epochs = []
        for length in (len(whole) // 2, len(whole) - 30, len(whole) - 1):
            self.log.write_bytes(whole[:length])
            said = self.replay(code=7)
            found = re.search(r"the log was cut off: it ends behind byte (\d+), where (\d+) epochs were the same", said)
            self.assertIsNotNone(found, said)
            self.assertEqual(len(said.strip().splitlines()), 1, said)
            self.assertLessEqual(int(found.group(1)), length)
            epochs.append(int(found.group(2)))
        self.assertEqual(epochs, sorted(epochs))

    def test_a_guest_that_breaks_the_rules_is_found(self):
        # Where CR4.TSD is honoured the guest fails instead, and does so again.
        done = subprocess.run([POLLUX, "vm", "--console", "none", *map(str, self.recording("misbehave", "what=rdtsc"))],
                              timeout=60, capture_output=True, text=True)
        if done.returncode == 4:
            self.assertIn("were the same", self.replay())
        else:
            self.assertRegex(self.replay(code=6), r"epoch \d+ differs: .*page 0x")

    def test_a_guest_that_fails_ends_with_4(self):
        self.assertIn("the guest failed with code 0x100", self.vm(*self.recording("misbehave", "what=panic"), code=4))
        self.assertIn("were the same", self.replay())

    def test_what_does_not_fit_together(self):
        self.vm(*self.recording("idle", "ticks=1 period_ms=1"))
        self.refused("--record: .*File exists", *self.recording("idle"))
        other = self.folder / "other"
        self.refused("--kernel .*: not the one that was recorded", "--replay", self.log, "--kernel", GUESTS / "compute")
        self.refused("--memory: not with --replay", "--replay", self.log, "--memory", "32M")
        self.refused("--record: not with --replay", "--replay", self.log, "--record", other)
        self.refused("--record: only with --profile deterministic", "--record", other, "--kernel", GUESTS / "idle")
        self.refused("--replay: .*No such file", "--replay", other)
        for option, value in (("--cpus", "2"), ("--initrd", "/etc/hostname"), ("--epoch-length", "0"),
                              ("--epoch-length", "999"), ("--epoch-length", "1000001")):
            self.refused(option, "--profile", "deterministic", "--kernel", GUESTS / "idle", option, value)
        self.refused("--epoch-length: only with --profile deterministic", "--kernel", GUESTS / "idle", "--epoch-length", "5000")
        self.assertFalse(other.exists())

    def test_the_options_stand_in_a_file_too(self):
        config = self.folder / "vm.toml"
        config.write_text(f'profile = "deterministic"\nepoch-length = 5000\nkernel = "{GUESTS / "idle"}"\n'
                          f'cmdline = "ticks=2 period_ms=1"\nmemory = "16M"\nrecord = "{self.log}"\n')
        self.vm("--config", config)
        self.assertIn("were the same", self.replay())


if __name__ == "__main__":
    unittest.main(verbosity=2)
