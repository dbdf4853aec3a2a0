#!/usr/bin/python3
"""`pollux vm` with stock Debian guests on an emulated SVM host: boot, SMP, disk, network, consoles, exit codes."""
import sys
import unittest

sys.dont_write_bytecode = True

import namespace

if __name__ == "__main__":
    namespace.enter()

import paths
from lab import CLIENT_IP, Lab, guest_cmdline

SHELL = "--kernel /guest/vmlinuz --initrd /guest/shell-initrd.cpio --memory 128M"
BOOT_TIMEOUT = 180


class OneHost(unittest.TestCase):
    host_options: dict = {}

    @classmethod
    def setUpClass(cls):
        cls.lab = Lab("vm", say=lambda line: None)
        cls.lab.__enter__()
        cls.addClassCleanup(cls.lab.__exit__)
        cls.disk = cls.lab.copy_disk(paths.GUEST_ROOT, "castor.raw")
        cls.castor = cls.lab.start_host("castor", disks=[cls.disk], **cls.host_options)
        cls.castor.run("tunctl -t tap0 && ip link set tap0 master br0 && ip link set tap0 up")

    def vm(self, log: str, options: str, words: str = "", feed: str = ""):
        """A job that runs a guest whose console is the job's output; `feed` commands are typed into it."""
        command = f"pollux vm {options} --cmdline '{guest_cmdline(words)}'"
        return self.castor.spawn(f"{feed} | {command}" if feed else f"{command} </dev/null", log)


class Vm(OneHost):
    def test_boots_a_bzimage_to_a_shell_that_obeys(self):
        self.castor.run("touch /tmp/keys")
        job = self.vm("shell", f"{SHELL} --cpus 1", feed="tail -f /tmp/keys")
        job.wait_for("guest#", BOOT_TIMEOUT)
        self.castor.run("echo cpus >> /tmp/keys; echo off >> /tmp/keys")
        job.wait_for("pollux-guest: cpus 1", 60)

    def test_two_vcpus_and_power_off_ends_with_0(self):
        job = self.vm("smp", f"{SHELL} --cpus 2", "guest.exit")
        job.wait_for("pollux-guest: cpus 2", BOOT_TIMEOUT)
        self.assertEqual(job.wait(60), 0)

    def test_disk_network_rng_and_consoles(self):
        job = self.vm("io", "--kernel /guest/vmlinuz --initrd /guest/initrd.cpio --memory 128M --disk /dev/vda"
                      " --net tap=tap0 --virtio-console file=/tmp/hvc0",
                      f"guest.test=io guest.ping={CLIENT_IP}")
        job.wait_for("pollux-guest: io ok", BOOT_TIMEOUT)
        self.assertEqual(job.wait(60), 0)
        self.assertIn("pollux-guest: hvc hello", self.castor.get("/tmp/hvc0").decode())

    def test_reset_ends_with_3(self):
        """By ACPI's reset register and by the keyboard controller."""
        for way in ("acpi", "kbd"):
            with self.subTest(way):
                job = self.vm(f"reset-{way}", f"{SHELL} --cpus 1", f"guest.exit guest.off=reboot reboot={way}")
                self.assertEqual(job.wait(BOOT_TIMEOUT), 3)

    def test_triple_fault_ends_with_4(self):
        job = self.vm("crash", f"{SHELL} --cpus 1", "guest.exit guest.off=reboot reboot=triple")
        self.assertEqual(job.wait(BOOT_TIMEOUT), 4)

    def test_bad_input_is_one_line_and_2(self):
        for options, named in (("--kernel /missing", "/missing"),
                               ("--kernel /root --memory 128M", "kernel"),
                               ("--kernel /guest/initrd.cpio --memory 128M", "kernel"),
                               (f"{SHELL} --disk /missing", "/missing"),
                               (f"{SHELL} --net tap=a-name-that-is-too-long", "--net"),
                               ("--kernel /guest/vmlinuz --memory 12Q", "memory"),
                               (f"{SHELL} --no-such-option 1", "no-such-option")):
            with self.subTest(options):
                result = self.castor.run(f"pollux vm {options} </dev/null", check=False)
                self.assertEqual(result.code, 2, result.output)
                self.assertEqual(len(result.output.strip().splitlines()), 1, result.output)
                self.assertIn(named, result.output)


class ShadowPaging(OneHost):
    """The other way to virtualize memory: kvm-amd without nested paging."""
    host_options = {"npt": False}

    def test_boots_with_shadow_paging(self):
        job = self.vm("shadow", f"{SHELL} --cpus 1", "guest.exit")
        job.wait_for("pollux-guest: cpus 1", BOOT_TIMEOUT * 2)
        self.assertEqual(job.wait(60), 0)


if __name__ == "__main__":
    unittest.main(verbosity=2)
