#!/usr/bin/python3
"""A stock Debian guest with Redis outlives its host: ./run demo.

Two emulated hosts, castor and pollux. castor runs the guest and replicates it to pollux, epoch by epoch. A client
writes to the guest's Redis over one TCP connection. Then castor's power fails. The client goes on over the same
connection; afterwards every write that was ever acknowledged to it must be there: in Redis, and, after a clean
shutdown, in the append-only file on pollux's disk image. With --cycles the lost host comes back and follows, and the
other one fails in its turn, under the same connection.
"""
import argparse
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.dont_write_bytecode = True

import namespace

if __name__ == "__main__":
    namespace.enter()

import aof
import paths
from lab import GUEST_IP, Lab, LabError
from protected_guest import ProtectedGuest
from redis_client import (ConnectionLost, RedisClient, RedisError, Workload, check_data, check_replies, guest_control,
                          guest_uptime, lost_from_data, wait_for_redis, writes_of)


class Teller:
    """Says what happens, with the seconds since the demo began."""

    def __init__(self):
        self.start = time.monotonic()

    def __call__(self, text: str):
        print(f"{time.monotonic() - self.start:7.1f} s  {text}", flush=True)


class Client(threading.Thread):
    """The workload on a thread of its own, until told to stop. `broken` says why the connection broke, if it did."""

    def __init__(self):
        super().__init__(daemon=True)
        self.redis = RedisClient(GUEST_IP, timeout=60)
        self.stopping = threading.Event()
        self.broken = None

    def run(self):
        try:
            Workload(self.redis, "demo").run(lambda: not self.stopping.is_set())
        except (ConnectionLost, RedisError) as error:
            self.broken = str(error)

    def journal(self) -> list:
        """So far."""
        return list(self.redis.journal)

    def acked(self) -> int:
        return len(self.redis.journal)

    def wait_for(self, count: int, timeout: float):
        """Until so many commands in all were acknowledged; returns at once when the connection broke."""
        deadline = time.monotonic() + timeout
        while self.acked() < count and not self.broken:
            if time.monotonic() > deadline:
                raise LabError(f"the client got {self.acked()} answers, not {count}, within {timeout:.0f} s")
            time.sleep(0.05)

    def stop(self):
        """Ends the workload after the command under way; the journal stays."""
        self.stopping.set()
        self.join(90)

    def close(self):
        self.redis.close()


def gap_ms(journal, since: float) -> float:
    """The longest time between two answers, of which the later came since then: what the client noticed."""
    times = [entry.acked for entry in journal]
    return max((later - earlier for earlier, later in zip(times, times[1:]) if later > since), default=0.0) * 1000


@dataclass
class Failover:
    """A host that was lost, and what came of it. Times in ms."""
    host: str
    timeline: dict                            # the new leader's
    gap: float                                # that the client noticed
    protected_after: float | None = None      # the host was back and could take over, since it was switched on
    sync_gap: float | None = None             # that the client noticed meanwhile
    problems: list[str] = field(default_factory=list)

    def as_json(self) -> dict:
        figures = {"failover_ms": self.gap, "promotion_ms": self.timeline["first_entry_ms"],
                   "protected_after_ms": self.protected_after, "sync_gap_ms": self.sync_gap}
        rounded = {name: round(value, 1) for name, value in figures.items() if value is not None}
        return {"host": self.host, **rounded, "timeline": self.timeline}


def fail_over(tell: Teller, guest: ProtectedGuest, client: Client, writes: int) -> Failover:
    """The leader's host loses its power, in the midst of the client's writes; returns when the client has gone on."""
    lost, heir = guest.leader, guest.follower
    before = client.acked()
    uptime = guest_uptime(GUEST_IP)
    tell(f"{lost.name}: POWER FAILURE (its whole machine is killed with SIGKILL)")
    killed_at = time.monotonic()
    lost.host.power_off()
    timeline = guest.wait_until_promoted()
    tell(f"{heir.name}: took over {timeline['first_entry_ms']:.0f} ms after the last sign of life "
         f"(from the end of epoch {timeline['epoch']})")
    client.wait_for(before + writes, 120)
    gap = gap_ms(client.journal(), killed_at)
    if not client.broken:
        tell(f"client: same connection, {client.acked()} acknowledged in all; it noticed a gap of {gap:.0f} ms")
    uptime_now = guest_uptime(GUEST_IP)
    back = [f"the guest's clock went back from {uptime} to {uptime_now} s"] if uptime_now < uptime else []
    return Failover(lost.name, timeline, gap, problems=back)


def protect_again(tell: Teller, guest: ProtectedGuest, client: Client, failover: Failover):
    begin = time.monotonic()
    tell(f"{failover.host}: switched on again, with the disk that it had; joins {guest.leader.name} as its backup")
    guest.rejoin(failover.host)
    guest.wait_until_protected()
    failover.protected_after = (time.monotonic() - begin) * 1000
    client.wait_for(client.acked() + 1, 60)
    failover.sync_gap = gap_ms(client.journal(), begin)
    tell(f"the guest is protected again: {failover.host} has got what it missed; the client noticed at most "
         f"{failover.sync_gap:.0f} ms between two answers")


def run(tell: Teller, args) -> dict:
    with Lab("demo", say=tell) as lab:
        guest = ProtectedGuest(lab, epoch_ms=args.epoch_ms)
        tell("switching on two hosts, castor and pollux (emulated machines on one LAN), and an arbiter (etcd)")
        guest.start_hosts()
        tell("pollux: waits as the backup")
        guest.start_backup()
        tell("castor: boots a stock Debian guest with Redis, and replicates it to pollux from the start")
        guest.start_primary()
        guest.wait_until_protected(180)
        tell("the guest is protected: pollux holds an image of it and can take over")
        wait_for_redis(GUEST_IP, 120)
        tell("Redis answers in the guest; a client writes to it over one TCP connection")
        client = Client()
        client.start()
        client.wait_for(args.writes, 120)
        stats = guest.statistics()
        tell(f"{client.acked()} writes acknowledged; epoch pause p50 {stats['epoch_pause_us_p50'] / 1000:.1f} ms, "
             f"{stats['dirty_pages_p50']} dirty pages an epoch")
        failovers = []
        for cycle in range(1, args.cycles + 1):
            failovers.append(fail_over(tell, guest, client, args.writes))
            if cycle < args.cycles:
                protect_again(tell, guest, client, failovers[-1])
        client.stop()
        if client.broken:
            tell(f"client: the connection BROKE: {client.broken}")
        return report(stats, failovers, client, verify(tell, guest, client))


@dataclass
class Verdict:
    """What is wrong after a failover: in words, and how many acknowledged writes are missing from data or file."""
    problems: list[str] = field(default_factory=list)
    lost: int = 0


def verify(tell: Teller, guest: ProtectedGuest, client: Client) -> Verdict:
    journal, unanswered = list(client.redis.journal), client.redis.unanswered
    problems = check_replies(journal)
    client.close()
    tell(f"replies: {'no gap, no repeat' if not problems else problems[0]}")
    with RedisClient(GUEST_IP, timeout=60) as reader:
        in_data = check_data(journal, reader, unanswered)
        lost = lost_from_data(journal, reader)
    tell(f"Redis data: {'every acknowledged write is there' if not in_data else in_data[0]}")
    guest_control(GUEST_IP, "poweroff")
    leader = guest.leader
    code = leader.job.wait(90)
    on_exit = [] if code == 0 else [f"{leader.name} ended with exit code {code} after the guest's shutdown"]
    leader.host.power_off()
    found = aof.read(aof.extract(guest.disks[leader.name], guest.lab.folder / "aof"))
    in_aof = aof.check(found, journal, unanswered)
    tell(f"append-only file on {leader.name}'s disk: {len(found.commands)} commands, "
         f"{'every acknowledged write is there' if not in_aof else in_aof[0]}")
    return Verdict(problems + in_data + on_exit + in_aof, len(lost | aof.lost(found, journal)))


def report(stats: dict, failovers: list[Failover], client: Client, verdict: Verdict) -> dict:
    return {"connection_survived": client.broken is None,
            "acked": len(writes_of(client.redis.journal)),
            "lost": verdict.lost,
            "problems": [problem for failover in failovers for problem in failover.problems] + verdict.problems,
            "failover_ms": round(max(failover.gap for failover in failovers), 1),
            "epoch_pause_us_p50": stats["epoch_pause_us_p50"],
            "epoch_pause_us_p99": stats["epoch_pause_us_p99"],
            "commit_latency_us_p50": stats["commit_latency_us_p50"],
            "epochs": stats["epochs"],
            "dirty_pages_p50": stats["dirty_pages_p50"],
            "failovers": [failover.as_json() for failover in failovers]}


def held(result: dict) -> bool:
    """Whether a report says that the promise was kept."""
    return result["connection_survived"] and result["lost"] == 0 and not result["problems"]


def main() -> int:
    parser = argparse.ArgumentParser(prog="./run demo", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--writes", type=int, default=100, help="acknowledged commands before, and after, the failure (100)")
    parser.add_argument("--cycles", type=int, default=1, help="power failures: after each but the last the host comes back, "
                        "protects the guest again, and the other one fails (1)")
    parser.add_argument("--epoch-ms", type=int, default=100, help="epoch length (100; the hosts are emulated and slow)")
    parser.add_argument("--report", type=Path, default=paths.repository() / "build/demo/report.json")
    args = parser.parse_args()
    for option in ("writes", "cycles", "epoch_ms"):
        if getattr(args, option) < 1:
            parser.error(f"--{option.replace('_', '-')}: expected 1 or more")
    tell = Teller()
    args.report.unlink(missing_ok=True)  # an old one must not be taken for this run's
    try:
        result = run(tell, args)
    except (LabError, ConnectionLost, RedisError, aof.AofError, OSError, subprocess.CalledProcessError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    args.report.parent.mkdir(parents=True, exist_ok=True)
    args.report.write_text(json.dumps(result, indent=2) + "\n")
    tell(f"{'all held' if held(result) else 'FAILED'}: details in {os.path.relpath(args.report)}")
    return 0 if held(result) else 1


if __name__ == "__main__":
    sys.exit(main())
