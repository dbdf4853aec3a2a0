#!/usr/bin/python3
"""Checks this machine as a host (local_host.py), and what decides for it (hardware.py). Boots nothing."""
import os
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path
from unittest import mock

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

import namespace

if __name__ == "__main__":
    namespace.enter()

import hardware
import host
import images
import test_vm
from kvm_device import needs_kvm
from lab import CLIENT_IP, Host, Lab, LabError, guest_cmdline, wait_until
from local_host import LocalHost

INTEL, AMD, NEITHER = "fpu vmx sse", "fpu svm sse", "fpu svm_lock hypervisor"


class Decision(unittest.TestCase):
    """Which CPUs, devices and words make this machine a host."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.kvm = self.folder / "kvm"
        self.kvm.touch()
        self.say("")

    def say(self, word: str):
        patch = mock.patch.dict(os.environ, {hardware.DIRECT: word})
        patch.start()
        self.addCleanup(patch.stop)

    def hardware(self, flags: str, **nested: str) -> hardware.Hardware:
        """A machine with these CPU flags and these modules' `nested` parameters."""
        cpuinfo = self.folder / "cpuinfo"
        cpuinfo.write_text(f"processor\t: 0\nvmx flags\t: ept svm\nflags\t\t: {flags}\nbugs\t\t: vmx\n" * 2)
        for module, value in nested.items():
            parameter = self.folder / module / "parameters/nested"
            parameter.parent.mkdir(parents=True, exist_ok=True)
            parameter.write_text(value + "\n")
        return hardware.Hardware(cpuinfo, self.kvm, self.folder)

    def test_a_cpu_with_vmx_or_svm_and_a_kvm_that_opens(self):
        self.assertTrue(hardware.runs_direct(self.hardware(INTEL)))
        self.assertTrue(hardware.runs_direct(self.hardware(AMD)))
        self.assertFalse(hardware.runs_direct(self.hardware(NEITHER)), "a software KVM is no hardware")
        self.kvm.unlink()
        self.assertFalse(hardware.runs_direct(self.hardware(INTEL)), "no /dev/kvm")

    def test_a_kvm_that_may_not_be_opened_does_not_count(self):
        with mock.patch("os.open", side_effect=PermissionError):
            self.assertFalse(self.hardware(INTEL).virtualizes())

    def test_a_cpuinfo_without_flags(self):
        other = self.hardware(INTEL)
        other.cpuinfo.write_text("processor\t: 0\nFeatures\t: vmx\n")
        self.assertFalse(other.virtualizes())

    def test_the_word_overrides_the_hardware(self):
        self.say("1")
        self.assertTrue(hardware.runs_direct(self.hardware(NEITHER)))
        self.assertFalse(hardware.accelerates_hosts(self.hardware(NEITHER)), "no KVM can be made to nest")
        self.say("0")
        self.assertFalse(hardware.runs_direct(self.hardware(INTEL)))
        self.assertFalse(hardware.accelerates_hosts(self.hardware(INTEL, kvm_intel="Y")))
        self.say("yes")
        with self.assertRaisesRegex(LabError, "POLLUX_LAB_DIRECT=yes"):
            hardware.runs_direct(self.hardware(INTEL))

    def test_hosts_run_on_a_kvm_that_nests(self):
        for flags, nested, expected in ((INTEL, {"kvm_intel": "Y"}, True), (AMD, {"kvm_amd": "1"}, True),
                                        (INTEL, {"kvm_intel": "N"}, False), (AMD, {"kvm_amd": "0"}, False),
                                        (INTEL, {"kvm_intel": "N", "kvm_amd": "1"}, False), (NEITHER, {}, False)):
            with self.subTest(flags=flags, nested=nested):
                self.assertEqual(hardware.accelerates_hosts(self.hardware(flags, **nested)), expected)

    def test_the_cpu_of_a_lab_host(self):
        for nests, cpu in ((True, ["-accel", "kvm", "-cpu", "host"]),
                           (False, ["-accel", "tcg,tb-size=256", "-cpu", "EPYC,+svm,+npt"])):
            with mock.patch("hardware.accelerates_hosts", return_value=nests):
                self.assertEqual(host.accelerator(), cpu)

    def test_the_lab_obeys(self):
        for word, kind in (("1", LocalHost), ("0", Host)):
            self.say(word)
            with Lab("local-kind", build=False) as lab, mock.patch.object(lab, "start_host") as start:
                self.assertEqual(isinstance(lab.vm_host("castor"), LocalHost), kind is LocalHost)
                self.assertEqual(start.called, kind is Host)


class OnThisMachine(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        images.Builder(lambda line: None).all()

    def setUp(self):
        self.lab = Lab("local-host", build=False)
        self.lab.__enter__()
        self.addCleanup(self.lab.__exit__)
        self.disk = self.lab.blank_disk("castor.raw", 1)
        with mock.patch.dict(os.environ, {hardware.DIRECT: "1"}):
            self.host = self.lab.vm_host("castor", disks=[self.disk])

    def test_commands_have_exit_codes_and_output(self):
        result = self.host.run("echo out; echo err >&2; exit 7", check=False)
        self.assertEqual((result.code, result.output), (7, "out\nerr\n"))
        self.assertEqual(self.host.run("kill -TERM $$", check=False).code, 143)
        with self.assertRaisesRegex(LabError, "castor: exit code 1: false"):
            self.host.run("false")

    def test_input_may_be_binary(self):
        data = bytes(range(256)) * 4096
        self.assertEqual(self.host.run("cat", stdin=data).raw, data)

    def test_files_come_back_as_they_went(self):
        data, name = os.urandom(1 << 20), self.host.file("a/b")
        self.host.put(data, name, mode="600")
        copy = self.lab.folder / "copy"
        self.assertEqual(self.host.get(name, copy), data)
        self.assertEqual(copy.read_bytes(), data)
        self.assertIn("-rw-------", self.host.run(f"ls -l {name}").output)

    def test_names_lead_to_the_lab_s_files(self):
        for name in (self.host.kernel, self.host.guest_initrd, self.host.shell_initrd):
            self.host.run(f"test -s {name}")
        self.host.run(f"echo written | dd of={self.host.disk(0)} conv=notrunc")
        self.assertEqual(self.disk.read_bytes()[:8], b"written\n")
        self.assertIn("usage", self.host.run("pollux --help").output.lower())

    def test_a_command_that_hangs_is_killed(self):
        mark = f"{os.getpid()}.25"
        with self.assertRaisesRegex(LabError, "no end within 1 s"):
            self.host.run(f"echo begun; sleep {mark}; true", timeout=1)
        wait_until(lambda: not living(mark), 10, "the end of sleep")

    def test_a_background_child_does_not_hold_the_command(self):
        start = time.monotonic()
        self.host.run("sleep 30 &")
        self.assertLess(time.monotonic() - start, 10)

    def test_jobs_run_side_by_side_and_can_be_killed(self):
        counting = self.host.spawn("i=0; while :; do echo line $i; i=$((i + 1)); sleep 0.1; done", "counting")
        short = self.host.spawn("echo done; exit 5", "short")
        self.assertEqual(short.wait(20), 5)
        self.assertEqual(short.log, self.lab.folder / "castor-short.log")
        self.assertEqual(short.output(), "done\n")
        self.assertEqual(counting.wait_for("line 3", 20), "line 3")
        self.assertTrue(counting.running)
        with self.assertRaisesRegex(LabError, "no end within 0 s"):
            counting.wait(0.1)
        counting.kill("TERM")
        self.assertEqual(counting.wait(20), 143)
        counting.kill()
        with self.assertRaisesRegex(LabError, "before it wrote 'line x'"):
            counting.wait_for("line x", 20)

    def test_a_job_can_be_stopped(self):
        job = self.host.spawn("while :; do echo x; sleep 0.05; done", "stopped")
        job.wait_for("x", 20)
        job.kill("STOP")
        time.sleep(0.2)
        size = len(job.output())
        time.sleep(0.3)
        self.assertEqual(len(job.output()), size)
        job.kill("CONT")
        wait_until(lambda: len(job.output()) > size, 10, "output after CONT")

    def test_a_tap_joins_the_lan(self):
        for _ in range(2):  # it may be there already
            self.host.add_tap("tap0")
        self.assertIn("master lan0", self.host.run("ip -o link show tap0").output)
        self.assertIn(CLIENT_IP, self.host.run("ip addr show lan0").output)

    def test_power_off_ends_everything(self):
        """Also what has left the job's process group, and what was stopped."""
        mark = f"{os.getpid()}.5"
        job = self.host.spawn(f"setsid sleep {mark} & echo alive; sleep {mark}; true", "alive")
        job.wait_for("alive", 20)
        wait_until(lambda: len(living(mark)) == 2, 10, "two sleeps")
        job.kill("STOP")
        self.host.power_off()
        self.assertEqual(living(mark), [])
        with self.assertRaisesRegex(LabError, "went away"):
            job.wait(10)
        self.assertEqual(job.output(), "alive\n")
        with self.assertRaisesRegex(LabError, "no power"):
            self.host.run("true")
        self.host.power_off()
        again = LocalHost(self.lab, "castor", [])
        self.addCleanup(again.power_off)
        again.run("true")

    @needs_kvm
    def test_a_guest_ends_with_its_host(self):
        """A stock kernel, of which even a software KVM carries out the beginning."""
        words = guest_cmdline(f"mark={os.getpid()}")
        job = self.host.spawn(f"sleep 60 | pollux vm --kernel {self.host.kernel} --initrd {self.host.shell_initrd}"
                              f" --memory 128M --cmdline '{words}'", "guest")
        wait_until(lambda: job.running and any(map(has_vcpu, living(words))), 20, "a vCPU")
        self.host.power_off()
        self.assertEqual(living(words), [])


class ProgramKilled(unittest.TestCase):
    def test_what_a_program_started_dies_with_it(self):
        mark = f"{os.getpid()}.75"
        program = subprocess.Popen(
            [sys.executable, "-B", "-c",
             "import lab, time\n"
             "it = lab.Lab('local-killed', build=False); it.__enter__()\n"
             f"it.vm_host('castor').spawn('setsid sleep {mark} & sleep {mark}; true', 'sleeps')\n"
             "time.sleep(60)"],
            cwd=Path(__file__).parent, env={**os.environ, hardware.DIRECT: "1"})
        try:
            wait_until(lambda: len(living(mark)) == 2, 20, "two sleeps")
        finally:
            program.kill()
            program.wait()
        wait_until(lambda: not living(mark), 10, "the end of the sleeps")


@needs_kvm
class BadInput(test_vm.OneHost):
    """The part of test_vm.py that boots nothing, on this machine."""

    @classmethod
    def setUpClass(cls):
        with mock.patch.dict(os.environ, {hardware.DIRECT: "1"}):
            super().setUpClass()

    test_bad_input = test_vm.Vm.test_bad_input_is_one_line_and_2


def has_vcpu(process: int) -> bool:
    try:
        return any("kvm-vcpu" in os.readlink(file) for file in Path(f"/proc/{process}/fd").iterdir())
    except OSError:  # it, or one of its files, has gone
        return False


def living(word: str) -> list[int]:
    """The processes with these arguments, but for shells, which hold them in their script."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (process / "cmdline").read_bytes().decode(errors="replace")
            if f"\0{word}\0" in f"\0{arguments}\0":
                found.append(int(process.name))
        except OSError:  # it has ended
            pass
    return found


if __name__ == "__main__":
    unittest.main(verbosity=2)
