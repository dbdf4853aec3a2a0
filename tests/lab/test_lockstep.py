#!/usr/bin/python3
"""A key-value server in lockstep on two hosts: the primary's host loses its power under the load of several clients, comes
back, and takes over in its turn. No acknowledged write may be missing, no answer may contradict another."""
import os
import sys
import time
import unittest
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).parent.parent / "kvm"))

import namespace

if __name__ == "__main__":
    namespace.enter()

import paths
from kv_client import Workload
from lab import GUEST_IP, Host, Lab
from protected_guest import ProtectedGuest

KV_SERVER = Path(os.environ.get("POLLUX_KV_SERVER") or
                 paths.repository() / "build/release/tests/guests/lockstep/kv_server")
CLIENTS = 3


class KvServer(ProtectedGuest):
    """Without disks."""

    def _make_disks(self) -> dict[str, Path]:
        return {}

    def _machine_words(self, kernel_words: tuple[str, ...]) -> str:
        return (f"--profile deterministic --strategy lockstep --epoch-length 20000 --kernel /root/kv_server"
                f" --cmdline ip={GUEST_IP} --memory 16M --staging 64M")

    def _prepare(self, host: Host):
        super()._prepare(host)
        host.put(KV_SERVER, "/root/kv_server")


class Lockstep(unittest.TestCase):
    def wait_for_answers(self, workloads: list[Workload], more: int):
        """From each of them."""
        wanted = [workload.acknowledged + more for workload in workloads]
        deadline = time.monotonic() + 120
        while any(workload.acknowledged < number for workload, number in zip(workloads, wanted)):
            self.assertEqual([line for workload in workloads for line in workload.contradictions], [])
            self.assertLess(time.monotonic(), deadline, "no answers")
            time.sleep(0.05)

    def test_hosts_die_in_turn_and_nothing_is_lost(self):
        with Lab("lockstep", say=lambda line: None) as lab:
            guest = KvServer(lab)
            guest.start()
            guest.wait_until_protected()
            workloads = [Workload(GUEST_IP, f"client{i}") for i in range(CLIENTS)]
            for workload in workloads:
                workload.start()
            gaps = []
            for last in (False, True):
                self.wait_for_answers(workloads, 30)
                self.assertEqual(guest.statistics()["divergences"], 0)
                lost = guest.leader.name
                guest.leader.host.power_off()
                gaps.append(guest.wait_until_promoted()["first_entry_ms"])
                self.wait_for_answers(workloads, 30)
                if not last:
                    guest.rejoin(lost)
                    guest.wait_until_protected()
            for workload in workloads:
                workload.stop_and_verify()
            self.assertEqual([line for workload in workloads for line in workload.contradictions], [])
            print(f"    took over after {gaps[0]:.0f} and {gaps[1]:.0f} ms; "
                  f"{sum(workload.acknowledged for workload in workloads)} acknowledged writes", file=sys.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
