#!/usr/bin/python3
"""A key-value server for deterministic guests, replicated between two processes; the primary is killed with SIGKILL at
random moments, under the load of several clients. No acknowledged write may be missing, no answer may contradict another.

KV_FAILOVERS: how many kills (5); KV_SEED: of their moments."""
import os
import random
import statistics
import sys
import time
import unittest
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).parent.parent / "lab"))

import namespace

if __name__ == "__main__":
    namespace.enter()

from kv_client import Workload
from processes import Processes

SERVER, HERE, MAC = "10.77.0.10", "10.77.0.1", "52:54:00:77:00:10"
BRIDGE, TAPS = "lan0", ("tap-a", "tap-b")
CLIENTS = 3
KV_SERVER = os.environ["POLLUX_KV_SERVER"]


def make_lan():
    namespace.ip("link", "set", "lo", "up")
    namespace.ip("link", "add", BRIDGE, "type", "bridge", "forward_delay", "0", "stp_state", "0", "mcast_snooping", "0")
    namespace.ip("addr", "add", f"{HERE}/24", "dev", BRIDGE)
    namespace.ip("link", "set", BRIDGE, "up")
    for tap in TAPS:
        namespace.ip("tuntap", "add", tap, "mode", "tap")
        namespace.ip("link", "set", tap, "master", BRIDGE, "up")


class KvFailover(Processes):
    def start_pair(self, words: tuple[str, ...]):
        a, b = str(self.folder / "a"), str(self.folder / "b")
        shared = ("--arbiter", "none", "--heartbeat-ms", "50", "--timeout-ms", "2000", "--console", "none")
        self.backup = self.start("backup", "backup", "--listen", "127.0.0.1:0", "--key", b, "--peer-key", a + ".pub",
                                 "--net", f"tap={TAPS[1]}", *shared)
        port = self.wait_for("backup", r"port (\d+)").group(1)
        self.primary = self.start("primary", "primary", "--backup", f"127.0.0.1:{port}", "--key", a,
                                  "--peer-key", b + ".pub", "--profile", "deterministic", "--kernel", KV_SERVER,
                                  "--cmdline", f"ip={SERVER}", "--memory", "16M", "--net", f"tap={TAPS[0]},mac={MAC}",
                                  *words, *shared)
        self.wait_for("primary", "can take over")

    def end_pair(self):
        for process in (self.primary, self.backup):
            process.kill()
            process.wait()

    def fail_over(self, moment: float) -> list[Workload]:
        """One kill in the midst of the clients' requests; returns when they have gone on, and verified all they know."""
        workloads = [Workload(SERVER, f"client{i}") for i in range(CLIENTS)]
        for workload in workloads:
            workload.start()
        deadline = time.monotonic() + 30
        while any(workload.acknowledged == 0 for workload in workloads):
            self.assertLess(time.monotonic(), deadline, "no answers before the kill")
            time.sleep(0.005)
        time.sleep(moment)  # the random moment itself
        self.primary.kill()
        killed = sum(workload.acknowledged for workload in workloads)
        self.wait_for("backup", "runs unprotected now")
        deadline = time.monotonic() + 30
        while sum(workload.acknowledged for workload in workloads) < killed + 50 and time.monotonic() < deadline:
            if any(workload.contradictions for workload in workloads):
                break
            time.sleep(0.02)
        for workload in workloads:
            workload.stop_and_verify()
        return workloads

    def test_copy(self):
        self.outlive("--epoch-ms", "5", "--staging", "16M")

    def test_lockstep(self):
        self.outlive("--strategy", "lockstep", "--epoch-length", "20000")

    def test_lockstep_committing_every_epoch(self):
        self.outlive("--strategy", "lockstep", "--epoch-length", "20000", "--commit", "every-epoch")

    def outlive(self, *words: str):
        kills, seed = int(os.environ.get("KV_FAILOVERS", "5")), int(os.environ.get("KV_SEED", "1"))
        moments = random.Random(seed)
        gaps, acknowledged = [], 0
        for kill in range(kills):
            with self.subTest(kill=kill, seed=seed):
                try:
                    self.start_pair(words)
                    workloads = self.fail_over(moments.uniform(0, 1))
                finally:
                    self.end_pair()
                self.assertEqual([line for workload in workloads for line in workload.contradictions], [])
                gaps.append(max(workload.longest for workload in workloads))
                acknowledged += sum(workload.acknowledged for workload in workloads)
        if len(gaps) < kills:
            return
        print(f"    {kills} kills, {acknowledged} acknowledged writes; longest gap between two answers: median "
              f"{statistics.median(gaps) * 1000:.0f} ms, longest {max(gaps) * 1000:.0f} ms", file=sys.stderr)


if __name__ == "__main__":
    make_lan()
    unittest.main(verbosity=2)
