#!/usr/bin/python3
"""An operator's orders, through pollux ctl, to a primary and a backup as processes on this host."""
import json
import os
import signal
import subprocess
import time
import unittest

from processes import GUEST, POLLUX, Processes, free_ports


class Status(dict):
    """What a replica says of itself. Between two roles it has no term, say: then that is None."""

    def __missing__(self, key):
        return None


class Control(Processes):
    def ctl(self, host: str, *words: str, code: int = 0) -> str:
        result = subprocess.run([POLLUX, "ctl", "--socket", self.folder / f"{host}.sock", *words], timeout=90,
                                stdin=subprocess.DEVNULL, capture_output=True, text=True)
        self.assertEqual(result.returncode, code, result.stdout + result.stderr)
        return result.stdout if code == 0 else result.stderr

    def status(self, host: str) -> dict:
        return json.loads(self.ctl(host, "--json", "status"))["status"]

    def wait_for_status(self, host: str, holds) -> dict:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            result = subprocess.run([POLLUX, "ctl", "--socket", self.folder / f"{host}.sock", "--json", "status"],
                                    stdin=subprocess.DEVNULL, capture_output=True, text=True)
            answer = json.loads(result.stdout) if result.stdout else {"ok": False}
            if answer["ok"] and holds(status := Status(answer["status"])):
                return status
            time.sleep(0.05)
        self.fail(f"{host} did not come to that: {result.stdout}{result.stderr}")

    def control(self, host: str) -> tuple[str, str]:
        return "--control", str(self.folder / f"{host}.sock")

    def rejoin(self, host: str) -> tuple[str, str]:
        return "--rejoin", f"127.0.0.1:{self.ports['b' if host == 'a' else 'a']}"

    def start_pair(self, *primary_words: str):
        """a leads, b has joined it and protects."""
        self.ports = dict(zip("ab", free_ports(2)))
        self.arbiter = self.file_arbiter()
        self.a = self.start("a.log", "primary", *self.host_words("a"), "--kernel", GUEST, "--memory", "64M",
                            "--console", "none", *self.control("a"), *primary_words)
        self.wait_for("a.log", "backups may join")
        self.b = self.join("b.log", "b", *self.control("b"), *self.rejoin("b"))
        self.wait_for("a.log", "protecting")

    def test_status_tells_each_role_as_it_changes(self):
        self.ports = dict(zip("ab", free_ports(2)))
        self.arbiter = self.file_arbiter()
        backup = self.join("b.log", "b", *self.control("b"))
        self.wait_for_status("b", lambda s: (s["role"], s["state"], s["guest"]) == ("backup", "joining", "passive"))
        primary = self.start("a.log", "primary", *self.host_words("a"), "--kernel", GUEST, "--memory", "64M",
                             "--console", "none", *self.control("a"))
        leading = self.wait_for_status("a", lambda s: s.get("protection") == "protected" and s["committed"] > 0)
        self.assertEqual((leading["role"], leading["term"], leading["guest"]), ("primary", 1, "running"))
        self.assertEqual([one["id"] for one in leading["backups"]], [0])
        following = self.wait_for_status("b", lambda s: s["state"] == "protecting" and s["committed"] > 0)
        self.assertEqual((following["vm"], following["term"]), (leading["vm"], 1))
        self.assertRegex(self.ctl("a", "status"), r"backup 0 +127.0.0.1:\d+, protecting, acknowledged \d+ \(\d unacknowledged\)")
        self.assertRegex(self.ctl("a", "stats"), r"epoch_pause_us_p50 +\d+")
        self.assertIn("is for the primary", self.ctl("b", "pause", code=1))
        primary.kill()
        promoted = self.wait_for_status("b", lambda s: s["state"] == "leading")
        self.assertEqual((promoted["vm"], promoted["term"], promoted["protection"]), (leading["vm"], 2, "unprotected"))
        self.assertEqual(promoted["backups"], [])
        self.assertIn("ends", self.ctl("b", "stop"))
        self.assertEqual(backup.wait(30), 0)
        self.assertFalse((self.folder / "b.sock").exists())

    def test_the_socket_is_the_owners_and_is_not_shared(self):
        self.start_pair()
        self.assertEqual(os.stat(self.folder / "a.sock").st_mode & 0o777, 0o600)
        second = self.start("second", "primary", *self.host_words("a"), "--kernel", GUEST, "--memory", "64M",
                            "--console", "none", *self.control("a"))
        self.assertEqual(second.wait(30), 2)
        self.a.kill()
        self.a.wait()  # its socket file is left behind
        self.assertTrue((self.folder / "a.sock").exists())
        again = self.join("again", "a", *self.control("a"))
        self.wait_for_status("a", lambda s: s["state"] == "protecting")
        self.assertIsNone(again.poll())

    def test_a_held_guest_stands_still_and_fails_over_all_the_same(self):
        self.start_pair()
        self.assertIn("stands still", self.ctl("a", "pause"))
        held = self.wait_for_status("a", lambda s: s["committed"] == s["epoch"])
        self.assertEqual(held["guest"], "paused")
        time.sleep(3)  # longer than --timeout-ms: nobody is lost
        self.assertEqual(self.status("a"), held)
        self.assertEqual(self.status("b")["state"], "protecting")
        self.ctl("a", "resume")
        self.wait_for_status("a", lambda s: s["guest"] == "running" and s["committed"] > held["committed"])
        self.ctl("a", "pause")
        self.a.kill()
        self.wait_for("b.log", "runs unprotected now")
        self.assertEqual(self.wait_for_status("b", lambda s: s["state"] == "leading")["guest"], "running")

    def test_a_backup_joins_a_machine_that_is_held(self):
        self.start_pair()
        self.b.kill()
        self.wait_for_status("a", lambda s: s.get("protection") == "unprotected")
        self.ctl("a", "pause")
        self.join("again", "b")
        held = self.wait_for_status("a", lambda s: s.get("protection") == "protected")
        self.assertEqual(held["guest"], "paused")
        self.ctl("a", "resume")
        self.wait_for_status("a", lambda s: s["committed"] > held["committed"])

    def test_a_backup_is_dropped_and_another_added(self):
        self.start_pair()
        self.assertIn("no backup 7", self.ctl("a", "drop-backup", "7", code=1))
        self.ctl("a", "drop-backup", "0")
        self.wait_for("b.log", "given up by the operator")
        self.assertEqual(self.b.wait(30), 1)  # told to end, not fenced: it does not rejoin
        self.assertEqual(self.claims(), [1, 2])
        self.wait_for_status("a", lambda s: s.get("protection") == "unprotected")
        self.assertIn("pollux: ", self.ctl("a", "add-backup", "127.0.0.1:1", code=1))
        waiting = self.start("waiting", "backup", *self.host_words("b"), *self.control("b"))
        self.wait_for("waiting", "listening on")
        self.assertEqual(self.status("b")["state"], "waiting")
        self.assertIn("backup 1", self.ctl("a", "add-backup", f"127.0.0.1:{self.ports['b']}"))
        self.wait_for_status("a", lambda s: s.get("protection") == "protected" and s["backups"][0]["state"] == "protecting")
        # One more, beside it.
        other = self.start("other", "backup", "--listen", "127.0.0.1:0", "--key", str(self.folder / "b"), "--peer-key",
                           str(self.folder / "a.pub"), "--arbiter", self.arbiter)
        port = self.wait_for("other", r"port (\d+)").group(1)
        self.assertIn("backup 2", self.ctl("a", "add-backup", f"127.0.0.1:{port}"))
        self.wait_for_status("a", lambda s: [b["state"] for b in s["backups"]] == ["protecting", "protecting"])
        other.kill()
        led = self.wait_for_status("a", lambda s: [b["state"] for b in s["backups"]] == ["protecting"])
        # What is committed since says that the one left knows the new term.
        self.wait_for_status("a", lambda s: s["committed"] > led["epoch"] + 1)
        self.a.kill()
        self.wait_for("waiting", "runs unprotected now")

    def test_the_machine_is_switched_there_and_back(self):
        self.start_pair(*("--rejoin", "127.0.0.1:1"))
        self.a.kill()  # that one rejoins nowhere; begin again with addresses
        self.a.wait()
        self.wait_for("b.log", "runs unprotected now")
        a = self.join("a2.log", "a", *self.control("a"), *self.rejoin("a"))
        hosts, term = ["b", "a"], 2
        vm = self.status("b")["vm"]
        for _ in range(4):
            leader, follower = hosts
            self.wait_for_status(leader, lambda s: s["backups"] and s["backups"][0]["state"] == "protecting")
            self.assertIn("leads the machine now", self.ctl(leader, "switchover"))
            term += 1
            led = self.wait_for_status(follower, lambda s: s["state"] == "leading")
            self.assertEqual((led["term"], led["vm"]), (term, vm))
            hosts.reverse()
        self.assertEqual(self.claims(), list(range(1, term + 1)))
        self.assertIsNone(a.poll())
        self.assertIsNone(self.b.poll())

    def test_of_two_backups_the_chosen_one_leads_and_the_other_follows(self):
        self.arbiter = self.file_arbiter()
        port_of = dict(zip("abc", free_ports(3)))
        keys = {host: self.folder / host for host in "abc"}
        subprocess.run([POLLUX, "keygen", keys["c"]], check=True, stdout=subprocess.DEVNULL)
        common = ("--arbiter", self.arbiter, "--heartbeat-ms", "50", "--timeout-ms", "2000")

        def replica(host: str) -> tuple[str, ...]:
            others = [word for other in "abc" if other != host for word in ("--peer-key", f"{keys[other]}.pub")]
            return (*others, "--listen", f"127.0.0.1:{port_of[host]}", "--key", str(keys[host]), *common, *self.control(host),
                    *(("--rejoin", f"127.0.0.1:{port_of['c']}") if host != "c" else ()))

        for host in "bc":
            self.start(f"{host}.log", "backup", *replica(host))
        for host in "bc":
            self.wait_for(f"{host}.log", "listening on")
        self.start("a.log", "primary", "--backup", f"127.0.0.1:{port_of['b']}", "--backup", f"127.0.0.1:{port_of['c']}",
                   *replica("a"), "--kernel", GUEST, "--memory", "64M", "--console", "none")
        self.wait_for_status("a", lambda s: [one["state"] for one in s["backups"]] == ["protecting"] * 2)
        self.assertIn("name one", self.ctl("a", "switchover", code=1))
        self.assertIn("backup 1", self.ctl("a", "switchover", "--to", "1"))
        self.wait_for("b.log", "fenced: backup 1 leads the machine now")
        # The two that follow: one protects it, and the other waits its turn.
        self.wait_for_status("c", lambda s: s["state"] == "leading" and s.get("protection") == "protected")
        self.wait_for("c.log", "turned away")
        self.assertEqual(sorted(self.status(host)["state"] in ("protecting", "syncing") for host in "ab"), [False, True])
        self.assertEqual(self.claims(), [1, 2])

    def test_without_rejoin_the_one_that_handed_over_ends_with_5(self):
        self.start_pair()
        self.assertIn("not protecting", self.ctl("a", "switchover", "--to", "3", code=1))
        self.ctl("a", "switchover", "--to", "0")
        self.assertEqual(self.a.wait(30), 5)
        self.wait_for("b.log", "runs unprotected now")
        self.assertNotIn("fenced", (self.folder / "a.log").read_text())
        self.assertEqual(self.claims(), [1, 2])

    def test_a_backup_that_dies_in_the_handover_gives_it_back(self):
        self.start_pair()
        self.b.send_signal(signal.SIGSTOP)  # not even its acknowledgement comes
        self.assertIn("pollux: ", self.ctl("a", "switchover", code=1))
        self.b.kill()
        self.wait_for_status("a", lambda s: s.get("protection") == "unprotected" and s["guest"] == "running")
        self.assertIsNone(self.a.poll())

    def test_a_lost_primary_that_is_started_as_before_does_not_lead_beside_the_one_that_took_over(self):
        self.ports = dict(zip("ab", free_ports(2)))
        self.arbiter = self.file_arbiter()
        b = self.start("b.log", "backup", *self.host_words("b"), *self.control("b"))
        words = "primary", *self.host_words("a"), "--kernel", GUEST, "--memory", "64M", "--console", "none", "--backup", \
            f"127.0.0.1:{self.ports['b']}"
        a = self.start("a.log", *words)
        self.wait_for("a.log", "protecting")
        a.kill()
        self.wait_for("b.log", "runs unprotected now")
        again = self.start("again.log", *words)
        self.assertEqual(again.wait(30), 1)
        self.assertIn("leads a machine itself", (self.folder / "again.log").read_text())
        self.assertEqual(self.status("b")["guest"], "running")
        self.assertIsNone(b.poll())

    def test_a_fenced_primary_rejoins_with_its_stale_state_replaced(self):
        self.ports = dict(zip("ab", free_ports(2)))
        self.arbiter = self.file_arbiter()
        disks = {host: self.folder / f"disk-{host}" for host in "ab"}
        content = os.urandom(1 << 20)
        for host in "ab":
            disks[host].write_bytes(content)
        a = self.start("a.log", "primary", *self.host_words("a"), "--kernel", GUEST, "--memory", "64M", "--console",
                       "none", *self.control("a"), *self.rejoin("a"), "--disk", str(disks["a"]))
        self.wait_for("a.log", "backups may join")
        self.join("b.log", "b", *self.control("b"), "--disk", str(disks["b"]))
        self.wait_for("a.log", "protecting")
        a.send_signal(signal.SIGSTOP)
        self.wait_for("b.log", "runs unprotected now")
        with open(disks["a"], "r+b") as stale:  # what it held is not what the machine holds now
            stale.write(os.urandom(1 << 16))
        a.send_signal(signal.SIGCONT)
        self.wait_for("a.log", "fenced: ")
        self.wait_for_status("a", lambda s: (s["role"], s["state"], s["term"]) == ("backup", "protecting", 2))
        self.assertEqual(disks["a"].read_bytes(), content)
        self.ctl("b", "switchover")
        self.wait_for_status("a", lambda s: s["state"] == "leading" and s["term"] == 3)

    def test_a_fenced_primary_that_is_started_again_joins(self):
        self.start_pair()
        self.a.send_signal(signal.SIGSTOP)
        self.wait_for("b.log", "runs unprotected now")
        self.a.send_signal(signal.SIGCONT)
        self.assertEqual(self.a.wait(30), 1)
        self.join("again", "a", *self.control("a"))
        self.wait_for_status("a", lambda s: s["state"] == "protecting")

    def test_a_stop_ends_it_though_the_arbiter_is_away(self):
        self.etcd_ports = free_ports(2)
        etcd = self.start_etcd()
        self.wait_for("etcd", "ready to serve client requests")
        self.ports = dict(zip("ab", free_ports(2)))
        self.arbiter = f"etcd:http://127.0.0.1:{self.etcd_ports[0]}"
        primary = self.start("a.log", "primary", *self.host_words("a"), "--kernel", GUEST, "--memory", "64M",
                             "--console", "none", *self.control("a"), "--arbiter-timeout-ms", "1000")
        self.wait_for("a.log", "backups may join")
        backup = self.join("b.log", "b", *self.control("b"), "--arbiter-timeout-ms", "1000")
        self.wait_for("a.log", "protecting")
        etcd.kill()
        etcd.wait()
        backup.kill()
        self.wait_for_status("a", lambda s: s["claiming"])
        self.wait_for("a.log", "arbiter .*: ")
        primary.terminate()
        self.assertEqual(primary.wait(30), 128 + signal.SIGTERM)
        self.assertIn("last outputs never left", (self.folder / "a.log").read_text())

    def test_a_watcher_sees_it_end(self):
        self.start_pair()
        watcher = subprocess.Popen([POLLUX, "ctl", "--socket", self.folder / "a.sock", "--json", "status", "--watch"],
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        self.addCleanup(watcher.kill)
        first = json.loads(watcher.stdout.readline())
        self.assertEqual(first["status"]["guest"], "running")
        self.ctl("a", "pause")
        for line in watcher.stdout:
            if json.loads(line)["status"]["guest"] == "paused":
                break
        self.ctl("a", "stop")
        self.assertEqual(self.a.wait(30), 0)
        self.assertEqual(watcher.wait(30), 0)
        watcher.stdout.close()

    def test_nobody_there(self):
        self.assertIn("a.sock", self.ctl("a", "status", code=1))
        result = subprocess.run([POLLUX, "ctl", "--help"], capture_output=True, text=True)
        self.assertIn("switchover", result.stdout)
        self.assertEqual(result.returncode, 0)


if __name__ == "__main__":
    unittest.main(verbosity=2)
