#!/usr/bin/python3
"""A stock Debian guest with Redis outlives its host: ./run demo.

Two emulated hosts, castor and pollux. castor runs the guest and replicates it to pollux, epoch by epoch. A client
writes to the guest's Redis over one TCP connection. Then castor's power fails. The client goes on over the same
connection; afterwards every write that was ever acknowledged to it must be there: in Redis, and, after a clean
shutdown, in the append-only file on pollux's disk image.
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
                          lost_from_data, wait_for_redis, writes_of)


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


def longest_gap_ms(journal) -> float:
    """The longest time between two answers: what the client noticed of the failover."""
    times = [entry.acked for entry in journal]
    return max((later - earlier for earlier, later in zip(times, times[1:])), default=0.0) * 1000


def run(tell: Teller, args) -> dict:
    with Lab("demo", say=tell) as lab:
        guest = ProtectedGuest(lab, epoch_ms=args.epoch_ms)
        tell("switching on two hosts, castor and pollux (emulated machines on one LAN)")
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
        before = client.acked()
        tell("castor: POWER FAILURE (its whole machine is killed with SIGKILL)")
        guest.castor.power_off()
        timeline = guest.wait_until_promoted()
        tell(f"pollux: took over {timeline['first_entry_ms']:.0f} ms after the last sign of life "
             f"(from the end of epoch {timeline['epoch']})")
        client.wait_for(before + args.writes, 120)
        client.stop()
        gap = longest_gap_ms(client.redis.journal)
        if client.broken:
            tell(f"client: the connection BROKE: {client.broken}")
        else:
            tell(f"client: same connection, {client.acked()} acknowledged in all; it noticed a gap of {gap:.0f} ms")
        return report(stats, timeline, client, gap, verify(tell, guest, client))


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
    code = guest.backup.wait(90)
    on_exit = [] if code == 0 else [f"pollux ended with exit code {code} after the guest's shutdown"]
    guest.pollux.power_off()
    found = aof.read(aof.extract(guest.disks["pollux"], guest.lab.folder / "aof"))
    in_aof = aof.check(found, journal, unanswered)
    tell(f"append-only file on pollux's disk: {len(found.commands)} commands, "
         f"{'every acknowledged write is there' if not in_aof else in_aof[0]}")
    return Verdict(problems + in_data + on_exit + in_aof, len(lost | aof.lost(found, journal)))


def report(stats: dict, timeline: dict, client: Client, gap: float, verdict: Verdict) -> dict:
    return {"connection_survived": client.broken is None,
            "acked": len(writes_of(client.redis.journal)),
            "lost": verdict.lost,
            "problems": verdict.problems,
            "failover_ms": round(gap, 1),
            "promotion_ms": round(timeline["first_entry_ms"], 1),
            "epoch_pause_us_p50": stats["epoch_pause_us_p50"],
            "epoch_pause_us_p99": stats["epoch_pause_us_p99"],
            "commit_latency_us_p50": stats["commit_latency_us_p50"],
            "epochs": stats["epochs"],
            "dirty_pages_p50": stats["dirty_pages_p50"],
            "timeline": timeline}


def held(result: dict) -> bool:
    """Whether a report says that the promise was kept."""
    return result["connection_survived"] and result["lost"] == 0 and not result["problems"]


def main() -> int:
    parser = argparse.ArgumentParser(prog="./run demo", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--writes", type=int, default=100, help="acknowledged commands before, and after, the failure (100)")
    parser.add_argument("--epoch-ms", type=int, default=100, help="epoch length (100; the hosts are emulated and slow)")
    parser.add_argument("--report", type=Path, default=paths.repository() / "build/demo/report.json")
    args = parser.parse_args()
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
