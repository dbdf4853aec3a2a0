#!/usr/bin/python3
"""Campaigns with a stock guest and Redis: seeded faults strike the two hosts one after the other, protection is restored after
each, all under one TCP connection to Redis and one on which a long stream of bytes goes there and back; then everything that
was ever acknowledged must be there, and both disks be the same. And what is left when both hosts are lost at once.

LAB_CHAOS_FAULTS: how many (2); LAB_CHAOS_SEED: which (5: the leader is cut off, then the next one resets itself). The report is
in build/lab/chaos."""
import filecmp
import os
import random
import sys
import unittest

sys.dont_write_bytecode = True

import namespace

if __name__ == "__main__":
    namespace.enter()

import paths
from byte_stream import ByteStream
from chaos_report import ChaosReport
from demo import Client, Verdict, verify
from lab import GUEST_IP, HOST_IPS, Lab, wait_until
from protected_guest import ProtectedGuest
from redis_client import RedisClient, check_data, check_replies, wait_for_redis


def kind_of(fault) -> str:
    return fault.__name__.replace("_", "-")


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
    OF_THE_FOLLOWER = [power_failure_of_the_follower, follower_cut_off]

    def schedule(self) -> list:
        """Every kind before any comes again."""
        generator = random.Random(self.seed)
        faults = []
        while len(faults) < self.count:
            faults += generator.sample(self.FAULTS, len(self.FAULTS))
        return faults[:self.count]

    def run(self, result=None):
        """Whatever fails, be it in the lab itself, says how to repeat it."""
        self.seed, self.count = int(os.environ.get("LAB_CHAOS_SEED", "5")), int(os.environ.get("LAB_CHAOS_FAULTS", "2"))
        self.command = f"LAB_CHAOS_SEED={self.seed} LAB_CHAOS_FAULTS={self.count} tests/lab/test_chaos.py Chaos.{self._testMethodName}"
        failed_before = len(result.failures) + len(result.errors) if result else 0
        result = super().run(result)
        if len(result.failures) + len(result.errors) > failed_before:
            self.say(f"seed {self.seed}; the same again: {self.command}")
        return result

    def setUp(self):
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
        schedule = self.schedule()
        report = ChaosReport(list(HOST_IPS), self.seed, [kind_of(fault) for fault in schedule], self.command)
        try:
            with report.violations("promises"):
                client.start()
                stream.start()
                self.note_roles(report)
                for fault in schedule:
                    self.strike(report, fault, client, stream)
                self.finish(client, stream)
        finally:
            folder = paths.lab_dir() / "chaos"
            report.write(folder, client.journal())
            self.say(f"report: {folder / 'report.html'}")

    def note_roles(self, report: ChaosReport):
        report.role(self.guest.leader.name, "primary, protected")
        report.role(self.guest.follower.name, "backup")
        report.epoch(self.guest.leader.name, self.guest.statistics()["epoch_committed"])

    def strike(self, report: ChaosReport, fault, client: Client, stream: ByteStream):
        client.wait_for(client.acked() + 30, 120)
        windows = stream.windows
        wait_until(lambda: stream.windows > windows or stream.problem, 60, "a window of the stream is under way")
        before, lost = self.guest.leader, self.guest.follower if fault in self.OF_THE_FOLLOWER else self.guest.leader
        report.strike(kind_of(fault), lost.name)
        report.role(lost.name, "down")
        come_back = fault(self)
        report.is_over(before.name, self.guest.leader.name)
        report.role(self.guest.leader.name, "primary, unprotected")
        client.wait_for(client.acked() + 10, 120)
        self.assertIsNone(client.broken, fault.__name__)
        report.role(lost.name, "starting")
        come_back()
        report.role(lost.name, "syncing")
        self.guest.wait_until("protected", 120)
        report.is_protected_again()
        self.note_roles(report)
        self.say(f"{kind_of(fault)}: protected again {report.time_to_protection():.0f} s after it struck")

    def finish(self, client: Client, stream: ByteStream):
        client.wait_for(client.acked() + 30, 120)
        client.stop()
        stream.stop()
        self.assertIsNone(client.broken)
        self.assertIsNone(stream.problem)
        follower = self.guest.follower
        self.assertEqual(verify(self.say, self.guest, client), Verdict())
        self.assertEqual(follower.job.wait(60), 0)
        follower.host.power_off()
        castor, pollux = self.guest.disks.values()
        self.assertTrue(filecmp.cmp(castor, pollux, shallow=False), f"{castor} and {pollux} differ")
        self.say(f"{stream.echoed >> 10} KiB went there and back, {stream.windows} times a whole window was under way; both disks "
                 "are the same")

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
