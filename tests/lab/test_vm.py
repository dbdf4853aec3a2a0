#!/usr/bin/python3
"""`pollux vm` with stock Debian guests: boot, SMP, disk, network, consoles, exit codes.

On a machine with VT-x or SVM they run on it, else on an emulated host.
"""
import os
import re
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

sys.dont_write_bytecode = True

import namespace

if __name__ == "__main__":
    namespace.enter()

import paths
from lab import CLIENT_IP, AnyHost, Lab, LabError, guest_cmdline, wait_until

BOOT_TIMEOUT = 180
CLONE_MACHINE = Path(os.environ.get("POLLUX_CLONE_MACHINE") or paths.repository() / "build/release/tests/kvm/clone_machine")
MOVES = 5   # that are looked at; there are some before and after
MANY = 100


def stripped(program: Path) -> bytes:
    """Debug information is most of a program, and the way to an emulated host is slow."""
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder, program.name)
        subprocess.run(["strip", "-o", small, program], check=True)
        return small.read_bytes()


class OneHost(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.lab = Lab("vm", say=lambda line: None)
        cls.lab.__enter__()
        cls.addClassCleanup(cls.lab.__exit__)
        cls.disk = cls.lab.copy_disk(paths.GUEST_ROOT, "castor.raw")
        cls.castor = cls.start_host()
        print(f"guests run on a {type(cls.castor).__name__}", file=sys.stderr)
        cls.castor.add_tap("tap0")
        cls.shell = f"--kernel {cls.castor.kernel} --initrd {cls.castor.shell_initrd} --memory 128M"

    @classmethod
    def start_host(cls) -> AnyHost:
        return cls.lab.vm_host("castor", disks=[cls.disk])

    def vm(self, log: str, options: str, words: str = "", feed: str = ""):
        """A job that runs a guest whose console is the job's output; `feed` commands are typed into it."""
        command = f"pollux vm {options} --cmdline '{guest_cmdline(words)}'"
        return self.castor.spawn(f"{feed} | {command}" if feed else f"{command} </dev/null", log)


class Vm(OneHost):
    def test_boots_a_bzimage_to_a_shell_that_obeys(self):
        keys = self.castor.file("keys")
        self.castor.put(b"", keys)
        job = self.vm("shell", f"{self.shell} --cpus 1", feed=f"tail -f {keys}")
        job.wait_for("guest#", BOOT_TIMEOUT)
        self.castor.run(f"echo cpus >> {keys}; echo off >> {keys}")
        job.wait_for("pollux-guest: cpus 1", 60)

    def test_two_vcpus_and_power_off_ends_with_0(self):
        job = self.vm("smp", f"{self.shell} --cpus 2", "guest.exit")
        job.wait_for("pollux-guest: cpus 2", BOOT_TIMEOUT)
        self.assertEqual(job.wait(60), 0)

    def test_eight_vcpus(self):
        job = self.vm("smp8", f"{self.shell} --cpus 8", "guest.exit")
        job.wait_for("pollux-guest: cpus 8", BOOT_TIMEOUT)
        self.assertEqual(job.wait(60), 0)

    def test_two_busy_vcpus_are_moved_again_and_again(self):
        """Saved, and restored in a new machine: both go on, and no clock goes back."""
        host, keys, program = self.castor, self.castor.file("move-keys"), self.castor.file("clone_machine")
        host.put(stripped(CLONE_MACHINE), program, mode="755")
        host.put(b"", keys)
        job = host.spawn(f"tail -f {keys} | {program} {host.kernel} {host.shell_initrd} '{guest_cmdline()}' 2 4000 {MANY} none",
                         "moved")
        job.wait_for("guest#", BOOT_TIMEOUT)
        readings = re.compile(r"up=([0-9.]+) +LOC: +(\d+) +(\d+) +Local")

        def type_in(keystrokes: str, heard: str):
            """What is typed in the midst of a move goes, all of it, with the old machine: then again."""
            for _ in range(10):
                host.run(f"cat >> {keys}", stdin=keystrokes.encode())
                try:
                    return job.wait_for(heard, 30)
                except LabError:
                    self.assertTrue(job.running, job.output())
            self.fail(f"{keystrokes!r} is never heard: {job.output()}")

        # Until a line is typed: the clock, and how many timer interrupts each CPU had. No "=" in what is echoed.
        type_in("(while :; do :; done) & (while :; do :; done) & while ! read -t 1 line; do read up idle < /proc/uptime;"
                " printf 'up%s%s %s\\n' = $up \"$(grep LOC: /proc/interrupts)\"; done; cpus; off\n", "up=")
        for move in range(MOVES):  # a reading between any two
            moved, read = job.output().count("moved: "), len(readings.findall(job.output()))
            wait_until(lambda: job.output().count("moved: ") > moved, 60, f"move {move}")
            wait_until(lambda: len(readings.findall(job.output())) > read, 60, f"a guest that goes on after move {move}")
        type_in("enough\n", "pollux-guest: cpus 2")
        job.wait_for("powered off", 60)
        first, *_, last = found = [tuple(map(float, reading)) for reading in readings.findall(job.output())]
        for column, name in enumerate(("uptime", "timer interrupts of CPU 0", "timer interrupts of CPU 1")):
            values = [reading[column] for reading in found]
            self.assertEqual(values, sorted(values), name)
            self.assertLess(first[column], last[column], name)
        self.assertNotRegex(job.output(), "(?i)clocksource.*unstable|rcu.*stall|lockup")

    def test_disk_network_rng_and_consoles(self):
        host, hvc = self.castor, self.castor.file("hvc0")
        job = self.vm("io", f"--kernel {host.kernel} --initrd {host.guest_initrd} --memory 128M --disk {host.disk(0)}"
                      f" --net tap=tap0 --virtio-console file={hvc}",
                      f"guest.test=io guest.ping={CLIENT_IP}")
        job.wait_for("pollux-guest: io ok", BOOT_TIMEOUT)
        self.assertEqual(job.wait(60), 0)
        self.assertIn("pollux-guest: hvc hello", host.get(hvc).decode())

    def test_reset_ends_with_3(self):
        """By ACPI's reset register and by the keyboard controller."""
        for way in ("acpi", "kbd"):
            with self.subTest(way):
                job = self.vm(f"reset-{way}", f"{self.shell} --cpus 1", f"guest.exit guest.off=reboot reboot={way}")
                self.assertEqual(job.wait(BOOT_TIMEOUT), 3)

    def test_triple_fault_ends_with_4(self):
        job = self.vm("crash", f"{self.shell} --cpus 1", "guest.exit guest.off=reboot reboot=triple")
        self.assertEqual(job.wait(BOOT_TIMEOUT), 4)

    def test_bad_input_is_one_line_and_2(self):
        host = self.castor
        for options, named in (("--kernel /missing", "/missing"),
                               (f"--kernel {host.folder} --memory 128M", "kernel"),
                               (f"--kernel {host.guest_initrd} --memory 128M", "kernel"),
                               (f"{self.shell} --disk /missing", "/missing"),
                               (f"{self.shell} --net tap=a-name-that-is-too-long", "--net"),
                               (f"--kernel {host.kernel} --memory 12Q", "memory"),
                               (f"{self.shell} --no-such-option 1", "no-such-option")):
            with self.subTest(options):
                result = host.run(f"pollux vm {options} </dev/null", check=False)
                self.assertEqual(result.code, 2, result.output)
                self.assertEqual(len(result.output.strip().splitlines()), 1, result.output)
                self.assertIn(named, result.output)


class ShadowPaging(OneHost):
    """The other way to virtualize memory: a KVM without nested paging, which takes a host of its own."""

    @classmethod
    def start_host(cls) -> AnyHost:
        return cls.lab.start_host("castor", disks=[cls.disk], npt=False)

    def test_boots_with_shadow_paging(self):
        job = self.vm("shadow", f"{self.shell} --cpus 1", "guest.exit")
        job.wait_for("pollux-guest: cpus 1", BOOT_TIMEOUT * 2)
        self.assertEqual(job.wait(60), 0)


if __name__ == "__main__":
    unittest.main(verbosity=2)
