#!/usr/bin/python3
"""The promise, from outside: the primary's host loses its power while idle, under write load, and during full sync; or it
only stands still for a while, and comes back."""
import sys
import time
import unittest

sys.dont_write_bytecode = True

import namespace

if __name__ == "__main__":
    namespace.enter()

import aof
from capture import Capture
from demo import Client, Verdict, verify
from lab import GUEST_IP, Lab
from protected_guest import GUEST_MAC, ProtectedGuest
from redis_client import RedisClient, guest_control, wait_for_redis


class Failover(unittest.TestCase):
    def setUp(self):
        self.lab = Lab(f"failover-{self._testMethodName.removeprefix('test_')}", say=lambda line: None)
        self.lab.__enter__()
        self.addCleanup(self.lab.__exit__)
        self.guest = ProtectedGuest(self.lab)
        self.guest.start()

    def protected_redis(self):
        self.guest.wait_until_protected(180)
        wait_for_redis(GUEST_IP, 120)

    def say(self, text):
        print(f"    {text}", file=sys.stderr)

    def test_killed_while_idle(self):
        """An open connection on which nothing is under way goes on working after the failover."""
        self.protected_redis()
        with RedisClient(GUEST_IP, timeout=60) as client:
            self.assertEqual(client.command("INCR", "idle:counter"), 1)
            client.command("SET", "idle:key", "before")
            epochs = self.guest.statistics()["epoch_committed"]
            deadline = time.monotonic() + 60
            while self.guest.statistics()["epoch_committed"] < epochs + 10:  # idle epochs go by
                self.assertLess(time.monotonic(), deadline, "no epochs are committed")
                time.sleep(0.2)
            self.guest.leader.host.power_off()
            timeline = self.guest.wait_until_promoted()
            self.assertEqual(client.command("INCR", "idle:counter"), 2)
            self.assertEqual(client.command("GET", "idle:key"), "before")
            self.say(f"took over after {timeline['first_entry_ms']:.0f} ms, longest reply {client.longest_pause():.1f} s")

    def test_killed_under_write_load(self):
        self.protected_redis()
        client = Client()
        client.start()
        client.wait_for(60, 120)
        self.guest.leader.host.power_off()
        self.guest.wait_until_promoted()
        client.wait_for(client.acked() + 60, 120)
        client.stop()
        self.assertIsNone(client.broken)
        self.assertEqual(verify(self.say, self.guest, client), Verdict())

    def test_clean_shutdown_ends_both_sides_with_equal_disks(self):
        self.protected_redis()
        client = Client()
        client.start()
        client.wait_for(30, 120)
        client.stop()
        client.close()
        self.assertIsNone(client.broken)
        guest_control(GUEST_IP, "poweroff")
        self.assertEqual(self.guest.leader.job.wait(120), 0)
        self.assertEqual(self.guest.follower.job.wait(60), 0)
        self.assertNotIn("failover", self.guest.follower.job.output())
        for host in self.guest.hosts.values():
            host.power_off()
        disks = [disk.read_bytes() for disk in self.guest.disks.values()]
        self.assertTrue(disks[0] == disks[1], "the two disk images differ")

    def test_a_zombie_primary_never_gets_a_byte_out(self):
        """castor stands still long enough to be given up, and comes back in the belief that it leads."""
        self.protected_redis()
        zombie = self.guest.leader
        client = Client()
        client.start()
        client.wait_for(30, 120)
        capture = Capture(zombie.host.tap)
        self.addCleanup(capture.stop)
        client.wait_for(client.acked() + 5, 60)
        self.assertGreater(len(capture.sent_by(GUEST_MAC)), 0, "the capture sees nothing of the guest")
        zombie.job.kill("STOP")
        self.guest.wait_until_promoted()
        promoted_at = time.monotonic()
        client.wait_for(client.acked() + 30, 120)
        zombie.job.kill("CONT")
        self.assertEqual(zombie.job.wait(60), 1)
        self.assertIn("fenced: ", zombie.job.output())
        client.wait_for(client.acked() + 30, 120)
        client.stop()
        self.assertIsNone(client.broken)
        self.assertEqual(capture.sent_by(GUEST_MAC, since=promoted_at), [])
        self.assertEqual(verify(self.say, self.guest, client), Verdict())

    def test_killed_during_full_sync(self):
        """Half a sync is never promoted: the backup says so, and what it has done to its disks, and ends."""
        self.guest.leader.job.wait_for("full sync begins", 120)
        self.guest.leader.host.power_off()
        self.assertEqual(self.guest.follower.job.wait(60), 1)
        output = self.guest.follower.job.output()
        self.assertIn("before protection began", output)
        self.assertIn("half overwritten", output)
        self.assertNotIn("runs unprotected now", output)


if __name__ == "__main__":
    unittest.main(verbosity=2)
