#!/usr/bin/python3
"""Campaigns with a stock guest and Redis: seeded faults strike the two hosts one after the other, protection is restored after
each, all under one TCP connection to Redis and one on which a long stream of bytes goes there and back; then everything that
was ever acknowledged must be there, and both disks be the same. And what is left when both hosts are lost at once.

LAB_CHAOS_FAULTS: how many (2); LAB_CHAOS_SEED: which (5: the leader is cut off, then the next one resets itself)."""
import filecmp
import os
import random
import sys
import time
import unittest

sys.dont_write_bytecode = True

import namespace

if __name__ == "__main__":
    namespace.enter()

from byte_stream import ByteStream
from demo import Client, Verdict, verify
from lab import GUEST_IP, Lab
from protected_guest import ProtectedGuest
from redis_client import RedisClient, check_data, check_replies, wait_for_redis


class Chaos(unittest.TestCase):
    # Each leaves the machine unprotected, led by whoever is left, and returns how the lost side comes back.

    def power_failure_of_the_leader(self):
        lost = self.guest.leader
        lost.host.power_off()
        self.guest.wait_until_promoted()
        return lambda: self.guest.rejoin(lost.name)

    def power_failure_of_the_follower(self):
        lost = self.guest.follower
        lost.host.power_off()
        self.guest.wait_until("unprotected")
        return lambda: self.guest.rejoin(lost.name)

    def reset_of_the_leader(self):
        lost = self.guest.leader
        lost.host.reset()
        self.guest.wait_until_promoted()
        return lambda: self.guest.rejoin(lost.name)

    def switchover(self):
        """Nothing breaks: the leader is told to hand over."""
        former = self.guest.leader
        former.host.run("pollux ctl --socket /root/control switchover")
        self.guest.wait_until_promoted()
        self.assertEqual(former.job.wait(60), 5)
        return lambda: self.guest.follow_again(former.name)

    def leader_cut_off(self):
        """From the other host, the arbiter and the clients; it comes back when another leads, and is told so."""
        lost = self.guest.leader
        lost.host.unplug()
        self.guest.wait_until_promoted()
        lost.host.plug()
        self.assertEqual(lost.job.wait(60), 1)
        self.assertIn("fenced: ", lost.job.output())
        return lambda: self.guest.follow_again(lost.name)

    def follower_cut_off(self):
        lost = self.guest.follower
        lost.host.unplug()
        self.guest.wait_until("unprotected")
        lost.host.plug()
        self.assertEqual(lost.job.wait(60), 1)
        return lambda: self.guest.follow_again(lost.name)

    def leader_stands_still(self):
        """For as long as it takes to be given up."""
        lost = self.guest.leader
        lost.job.kill("STOP")
        self.guest.wait_until_promoted()
        lost.job.kill("CONT")
        self.assertEqual(lost.job.wait(60), 1)
        self.assertIn("fenced: ", lost.job.output())
        return lambda: self.guest.follow_again(lost.name)

    FAULTS = [power_failure_of_the_leader, power_failure_of_the_follower, reset_of_the_leader, switchover, leader_cut_off,
              follower_cut_off, leader_stands_still]

    def schedule(self) -> list:
        """Every kind before any comes again."""
        generator = random.Random(self.seed)
        faults = []
        while len(faults) < self.count:
            faults += generator.sample(self.FAULTS, len(self.FAULTS))
        return faults[:self.count]

    def setUp(self):
        self.seed, self.count = int(os.environ.get("LAB_CHAOS_SEED", "5")), int(os.environ.get("LAB_CHAOS_FAULTS", "2"))
        self.lab = Lab("chaos", say=lambda line: None)
        self.lab.__enter__()
        self.addCleanup(self.lab.__exit__)
        self.guest = ProtectedGuest(self.lab)
        self.guest.start()
        self.guest.wait_until_protected(180)
        wait_for_redis(GUEST_IP, 120)

    def say(self, text):
        print(f"    {text}", file=sys.stderr)

    def test_faults_one_after_the_other(self):
        client, stream = Client(), ByteStream(GUEST_IP, self.seed)
        client.start()
        stream.start()
        for fault in self.schedule():
            client.wait_for(client.acked() + 30, 120)
            begin = time.monotonic()
            come_back = fault(self)
            client.wait_for(client.acked() + 10, 120)
            self.assertIsNone(client.broken, fault.__name__)
            come_back()
            self.guest.wait_until("protected", 120)
            self.say(f"{fault.__name__.replace('_', ' ')}: protected again after {time.monotonic() - begin:.0f} s")
        client.wait_for(client.acked() + 30, 120)
        client.stop()
        stream.stop()
        self.assertIsNone(client.broken)
        self.assertIsNone(stream.problem)
        self.assertGreater(stream.echoed, 100_000)
        follower = self.guest.follower
        self.assertEqual(verify(self.say, self.guest, client), Verdict(),
                         f"repeat it with LAB_CHAOS_SEED={self.seed} LAB_CHAOS_FAULTS={self.count}")
        self.assertEqual(follower.job.wait(60), 0)
        follower.host.power_off()
        castor, pollux = self.guest.disks.values()
        self.assertTrue(filecmp.cmp(castor, pollux, shallow=False), f"{castor} and {pollux} differ")
        self.say(f"{stream.echoed >> 10} KiB went there and back; both disks are the same")

    def test_both_hosts_lost_while_the_second_promotes(self):
        """The machine is gone, and nothing else: booted anew from the disk of the one that promoted, Redis has every
        acknowledged write in its append-only file."""
        client = Client()
        client.start()
        client.wait_for(90, 120)
        self.guest.leader.host.power_off()
        self.guest.follower.job.wait_for("is this replica's", 60)
        self.guest.follower.host.power_off()
        client.redis.abort()
        client.stop()
        journal, unanswered = client.journal(), client.redis.unanswered
        self.assertEqual(check_replies(journal), [])
        self.guest.start_anew(self.guest.follower.name)
        wait_for_redis(GUEST_IP, 120)
        with RedisClient(GUEST_IP, timeout=60) as reader:
            self.assertEqual(check_data(journal, reader, unanswered), [])
        self.say(f"{len(journal)} acknowledged writes survived both hosts")


if __name__ == "__main__":
    unittest.main(verbosity=2)
