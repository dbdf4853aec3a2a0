#!/usr/bin/python3
"""`pollux vm` with stock Debian guests: boot, SMP, disk, network, consoles, exit codes.

On a machine with VT-x or SVM they run on it, else on an emulated host.
"""
import sys
import unittest

sys.dont_write_bytecode = True

import namespace

if __name__ == "__main__":
    namespace.enter()

import paths
from lab import CLIENT_IP, AnyHost, Lab, guest_cmdline

BOOT_TIMEOUT = 180


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
