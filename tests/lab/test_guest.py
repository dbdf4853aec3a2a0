#!/usr/bin/python3
"""Checks the guest's images under plain QEMU, without Pollux. Takes about 20 seconds."""
import socket
import sys
import unittest

sys.dont_write_bytecode = True

import namespace

if __name__ == "__main__":
    namespace.enter()

import aof
import microvm
import paths
from lab import CLIENT_IP, GUEST_IP, Lab, wait_until
from redis_client import RedisClient, Workload, check_data, check_replies, guest_control


def echo_one_line(path, guest):
    """Sends the first line from the guest's /dev/hvc0 back to it."""
    wait_until(path.exists, 20, "QEMU makes the console socket")
    with socket.socket(socket.AF_UNIX) as console:
        console.settimeout(60)
        console.connect(str(path))
        line = console.makefile("rb").readline()
        console.sendall(line)
        guest.wait_end(60)
        return line


class Guest(unittest.TestCase):
    def setUp(self):
        self.lab = Lab(f"test-guest-{self._testMethodName}", say=lambda line: None)
        self.lab.__enter__()
        self.addCleanup(self.lab.__exit__)

    def disk(self):
        return self.lab.copy_disk(paths.GUEST_ROOT, "guest.raw")

    def run_redis(self, end):
        """Boots, writes, ends the guest by `end`, and holds the disk's AOF against the journal."""
        disk = self.disk()
        guest = microvm.start(self.lab, disk=disk)
        seconds = guest.wait_console("pollux-guest: ready", 60)
        with RedisClient(GUEST_IP) as client:
            workload = Workload(client)
            workload.run(lambda: workload.steps < 100)
            journal = list(client.journal)
            self.assertEqual(check_replies(journal), [])
            self.assertEqual(check_data(journal, client), [])
        each = sum(entry.acked - entry.sent for entry in journal) / len(journal)
        print(f"ready after {seconds:.1f} s, one durable write {1000 * each:.1f} ms", end=" ", file=sys.stderr)
        end(guest)
        log = aof.read(aof.extract(disk, self.lab.folder / "aof"))
        self.assertEqual(aof.check(log, journal), [])

    def test_redis_and_clean_shutdown(self):
        def shut_down(guest):
            self.assertEqual(guest_control(GUEST_IP, "poweroff"), "ok poweroff")
            guest.wait_console("pollux-guest: stopped", 30)
            self.assertEqual(guest.wait_end(30), 0)
            self.assertNotIn("busy", guest.console.text())
        self.run_redis(shut_down)

    def test_redis_and_power_failure(self):
        self.run_redis(lambda guest: guest.power_off())

    def test_devices(self):
        guest = microvm.start(self.lab, "guest.test=io", "guest.hvc=echo", f"guest.ping={CLIENT_IP}",
                              disk=self.disk(), console_device=True)
        self.assertEqual(echo_one_line(microvm.console_socket(self.lab), guest).strip(), b"pollux-guest: hvc hello")
        self.assertIn("pollux-guest: io ok", guest.console.text())
        for part in "disk", "discard", "hwrng", "hvc", "net":
            self.assertIn(f"pollux-guest: io {part} done", guest.console.text())

    def test_a_device_that_fails_is_named(self):
        guest = microvm.start(self.lab, "guest.test=io", disk=self.disk(), console_device=False)
        guest.wait_console("pollux-guest: io FAILED hvc", 60)
        self.assertEqual(guest.wait_end(30), 0)

    def test_shell_without_a_disk(self):
        guest = microvm.start(self.lab, "guest.exit")
        guest.wait_console("pollux-guest: shell", 60)
        guest.wait_console("pollux-guest: cpus 1", 60)
        guest.wait_end(30)

    def test_the_decompressed_kernel(self):
        guest = microvm.start(self.lab, kernel=paths.KERNEL_ELF)
        guest.wait_console("pollux-guest: shell", 60)


if __name__ == "__main__":
    unittest.main(verbosity=2)
