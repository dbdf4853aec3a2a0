#!/usr/bin/python3
"""Checks the lab's hosts: boot, LAN, command channel, power failure. Takes about 25 seconds."""
import os
import sys
import time
import unittest

sys.dont_write_bytecode = True

import namespace

if __name__ == "__main__":
    namespace.enter()

from lab import CLIENT_IP, HOST_IPS, Lab, LabError


class Hosts(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.lab = Lab("test-hosts", say=lambda line: None)
        cls.lab.__enter__()
        cls.addClassCleanup(cls.lab.__exit__)
        start = time.monotonic()
        disks = {name: [cls.lab.blank_disk(f"{name}.raw", 8)] for name in HOST_IPS}
        cls.castor, cls.pollux = cls.lab.start_hosts(disks)
        print(f"both hosts ready after {time.monotonic() - start:.1f} s", file=sys.stderr)

    def test_the_host_can_virtualize(self):
        self.castor.run("test -c /dev/kvm && test -c /dev/net/tun && test -b /dev/vda")
        self.assertEqual(self.castor.run("cat /sys/module/kvm_*/parameters/[ne]pt").output.strip(), "Y")
        self.castor.run("test -s /guest/vmlinuz && test -s /guest/initrd.cpio && test -s /guest/shell-initrd.cpio")

    def test_a_tap_joins_the_bridge(self):
        self.castor.run("tunctl -t tap0 && ip link set tap0 master br0 && ip link set tap0 up")
        self.assertIn("tap0", self.castor.run("ls /sys/class/net/br0/brif").output)

    def test_everyone_reaches_everyone(self):
        self.castor.run(f"ping -c 1 -W 5 {self.pollux.ip} && ping -c 1 -W 5 {CLIENT_IP}")
        self.pollux.run(f"ping -c 1 -W 5 {self.castor.ip}")

    def test_commands_have_exit_codes_and_output(self):
        result = self.castor.run("echo out; echo err >&2; exit 7", check=False)
        self.assertEqual((result.code, result.output), (7, "out\nerr\n"))
        with self.assertRaisesRegex(LabError, "exit code 1"):
            self.castor.run("false")

    def test_input_may_be_binary(self):
        data = bytes(range(256)) * 4
        self.assertEqual(self.castor.run("cat", stdin=data).raw, data)

    def test_files_come_back_as_they_went(self):
        data = os.urandom(2 << 20)
        self.castor.put(data, "/tmp/a/b", mode="600")
        self.assertEqual(self.castor.get("/tmp/a/b"), data)
        self.assertIn("-rw-------", self.castor.run("ls -l /tmp/a/b").output)

    def test_a_command_that_hangs_is_killed(self):
        with self.assertRaisesRegex(LabError, "no end within 1 s"):
            self.castor.run("sleep 4321", timeout=1)
        self.castor.run("! ps | grep -q 'sleep 432[1]'")

    def test_jobs_run_side_by_side(self):
        counting = self.castor.spawn("i=0; while :; do echo line $i; i=$((i + 1)); usleep 100000; done", "counting")
        short = self.castor.spawn("echo done; exit 5", "short")
        self.assertEqual(short.wait(20), 5)
        self.assertEqual(short.output(), "done\n")
        self.assertEqual(counting.wait_for("line 3", 20), "line 3")
        self.assertTrue(counting.running)
        counting.kill("TERM")
        self.assertEqual(counting.wait(20), 143)

    def test_a_background_child_does_not_hold_the_command(self):
        start = time.monotonic()
        self.castor.run("sleep 30 &")
        self.assertLess(time.monotonic() - start, 10)

    def test_a_host_can_be_cut_off_and_still_obeys(self):
        self.pollux.unplug()
        self.pollux.run(f"! ping -c 1 -W 1 {CLIENT_IP}")
        self.pollux.plug()
        self.pollux.run(f"ping -c 1 -W 5 {CLIENT_IP}")

    def test_hosts_can_be_cut_off_from_each_other_only(self):
        self.lab.partition()
        self.castor.run(f"! ping -c 1 -W 1 {self.pollux.ip} && ping -c 1 -W 5 {CLIENT_IP}")
        self.pollux.run(f"ping -c 1 -W 5 {CLIENT_IP}")
        self.lab.partition(False)
        self.castor.run(f"ping -c 1 -W 5 {self.pollux.ip}")

    def test_z_power_failure_and_return(self):
        """Last by its name: it takes pollux away from the other tests."""
        job = self.pollux.spawn("echo alive; sleep 1000", "alive")
        job.wait_for("alive")
        self.pollux.run("echo kept | dd of=/dev/vda conv=fsync 2>/dev/null")
        self.pollux.power_off()
        with self.assertRaisesRegex(LabError, "went away"):
            job.wait(10)
        self.assertEqual(job.output(), "alive\n")
        with self.assertRaises(LabError):
            self.pollux.run("true")
        again = self.lab.start_host("pollux", disks=self.pollux.disks, npt=False)
        self.assertEqual(again.run("cat /sys/module/kvm_*/parameters/[ne]pt").output.strip(), "N")
        self.assertEqual(again.run("head -c 4 /dev/vda").output, "kept")


if __name__ == "__main__":
    unittest.main(verbosity=2)
