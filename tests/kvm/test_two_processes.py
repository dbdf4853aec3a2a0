#!/usr/bin/python3
"""A primary and a backup as processes on this host: who goes on when one of them stands still, or both live but cannot
tell; and how a machine that lost its backup gets another."""
import json
import os
import signal
import socket
import subprocess
import threading
import time
import unittest

from processes import GUEST, POLLUX, Processes, free_ports


class Cable:
    """Between two processes: a TCP connection here, another one there, until it breaks."""

    def __init__(self, to_port: int):
        self._to_port, self._ends, self._held = to_port, [], threading.Event()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        try:
            while True:
                near, _ = self._server.accept()
                far = socket.create_connection(("127.0.0.1", self._to_port))
                self._ends += [near, far]
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=ends, daemon=True).start()
        except OSError:
            pass  # broken off

    def _carry(self, source: socket.socket, sink: socket.socket):
        try:
            while (data := source.recv(1 << 16)) and not self._held.is_set():
                sink.sendall(data)
        except OSError:
            pass
        if not self._held.is_set():
            self._shut_down(source, sink)

    @staticmethod
    def _shut_down(*ends: socket.socket):
        for end in ends:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it is down already

    def hold(self):
        """Nothing comes through any more, and neither side can tell."""
        self._held.set()

    def break_off(self):
        """Both sides see the end of it, and reach each other no more."""
        self._server.close()
        self._shut_down(*self._ends)


class TwoProcesses(Processes):
    def committed(self) -> int:
        """The epoch that the primary committed last."""
        answer = subprocess.run([POLLUX, "ctl", "--socket", self.folder / "ctl", "--json", "status"], capture_output=True, text=True,
                                timeout=60, check=True)
        return json.loads(answer.stdout)["status"]["committed"]

    def start_both(self, arbiter: str, backup_timeout_ms: int, primary_timeout_ms: int):
        """The link goes through self.cable."""
        a, b = str(self.folder / "a"), str(self.folder / "b")
        arbiter_words = ("--arbiter", arbiter, "--heartbeat-ms", "50")
        self.backup = self.start("backup", "backup", "--listen", "127.0.0.1:0", "--key", b, "--peer-key", a + ".pub",
                                 "--timeout-ms", str(backup_timeout_ms), *arbiter_words)
        port = self.wait_for("backup", r"port (\d+)").group(1)
        self.cable = Cable(int(port))
        self.addCleanup(self.cable.break_off)
        self.primary = self.start("primary", "primary", "--backup", f"127.0.0.1:{self.cable.port}", "--control", str(self.folder / "ctl"),
                                  "--key", a, "--peer-key", b + ".pub", "--kernel", GUEST, "--memory", "64M",
                                  "--console", "none", "--timeout-ms", str(primary_timeout_ms), *arbiter_words)
        self.wait_for("primary", "protecting")

    def test_a_stalled_backup_does_not_take_its_own_stall_for_silence(self):
        self.start_both("none", 1500, 20_000)
        for _ in range(4):
            self.backup.send_signal(signal.SIGSTOP)
            time.sleep(2.5)  # the stall itself: longer than the timeout
            before = self.committed()
            self.backup.send_signal(signal.SIGCONT)
            self.wait_until(lambda: self.committed() > before + 1)  # so it acknowledges again
            self.assertIsNone(self.backup.poll(), (self.folder / "backup").read_text())
        self.assertNotIn("failover", (self.folder / "backup").read_text())
        # Still protecting: now the primary does die.
        self.primary.kill()
        self.wait_for("backup", "failover at the end of epoch")

    def test_a_primary_that_comes_back_from_a_stall_is_fenced(self):
        self.start_both(self.file_arbiter(), 2000, 20_000)
        self.primary.send_signal(signal.SIGSTOP)
        self.wait_for("backup", "runs unprotected now")
        self.primary.send_signal(signal.SIGCONT)
        self.assertEqual(self.primary.wait(30), 1)
        self.wait_for("primary", "fenced: ")
        self.assertIsNone(self.backup.poll(), (self.folder / "backup").read_text())

    def test_a_backup_is_fenced_when_its_primary_went_on_without_it(self):
        self.start_both(self.file_arbiter(), 20_000, 20_000)
        self.backup.send_signal(signal.SIGSTOP)
        # Broken off while the backup stands still: the primary asks the arbiter first, and its goodbye does not arrive.
        self.cable.break_off()
        self.wait_for("primary", "goes on unprotected")
        self.backup.send_signal(signal.SIGCONT)
        self.assertEqual(self.backup.wait(60), 1)
        log = (self.folder / "backup").read_text()
        self.assertRegex(log, r"fenced: lost the primary: .*; term 2 is another replica's")
        self.assertNotIn("failover", log)
        self.assertIsNone(self.primary.poll())
        self.assertEqual(self.claims(), [1, 2])

    def test_the_machine_moves_from_host_to_host_and_is_protected_again_each_time(self):
        disks = {host: self.folder / f"disk-{host}" for host in "ab"}
        content = os.urandom(1 << 20)
        disks["a"].write_bytes(content)
        leader, led_by = self.start_primary_alone("--disk", str(disks["a"])), "primary"
        for term, host in enumerate("baba", start=2):
            log = f"{host}-{term}"
            disks[host].write_bytes(content[:1 << 19] + os.urandom(1 << 19))  # half of it is right already
            follower = self.join(log, host, "--disk", str(disks[host]))
            self.wait_for(led_by, r"backup \d+: protecting")
            self.assertIn("full sync: 8 disk blocks", (self.folder / led_by).read_text())
            self.assertEqual(disks[host].read_bytes(), content)
            leader.kill()
            leader.wait()
            self.wait_for(log, "runs unprotected now")
            self.assertEqual(self.claims(), list(range(1, term + 1)))
            leader, led_by = follower, log
        leader.terminate()
        self.assertEqual(leader.wait(30), 128 + signal.SIGTERM)

    def test_a_backup_that_starts_first_joins_when_the_primary_comes_up(self):
        self.ports = dict(zip("ab", free_ports(2)))
        self.arbiter = "none"
        backup = self.join("backup", "b")
        self.wait_for("backup", "trying again")
        self.start("primary", "primary", *self.host_words("a"), "--kernel", GUEST, "--memory", "64M", "--console", "none")
        self.wait_for("primary", "protecting")
        backup.terminate()
        self.assertEqual(backup.wait(30), 128 + signal.SIGTERM)
        self.wait_for("primary", "goes on unprotected")
        self.join("again", "b")
        self.wait_for("primary", "backup 1: protecting")

    def test_a_joiner_that_dies_in_its_sync_costs_nothing(self):
        primary = self.start_primary_alone()
        for attempt in range(3):
            joiner = self.join(f"joiner-{attempt}", "b")
            self.wait_for(f"joiner-{attempt}", "full sync begins")
            joiner.kill()
            joiner.wait()
        self.assertIsNone(primary.poll())
        self.join("last", "b")
        self.wait_for("primary", r"backup \d+: protecting")
        self.wait_for("last", "full sync complete")

    def test_three_backups_join_and_a_fourth_waits_until_one_is_lost(self):
        self.start_primary_alone()
        backups = [self.join("joiner-0", "b")]
        for number in range(4):
            if number > 0:
                backups.append(self.start(
                    f"joiner-{number}", "backup", "--join", f"127.0.0.1:{self.ports['a']}", "--key", str(self.folder / "b"),
                    "--peer-key", str(self.folder / "a.pub"), "--arbiter", self.arbiter))
            if number < 3:
                self.wait_for("primary", f"backup {number}: protecting")
        self.wait_for("joiner-3", "turned away: it has 3 backups already")
        time.sleep(2)  # it asks several times, and each side says so once
        self.assertEqual((self.folder / "joiner-3").read_text().count("turned away"), 1)
        self.assertEqual((self.folder / "primary").read_text().count("turned away"), 1)
        backups[1].kill()
        self.wait_for("primary", "backup 3: protecting")
        self.assertEqual([backup.poll() for backup in backups if backup is not backups[1]], [None, None, None])

    def test_a_member_goes_on_when_the_primary_dies_before_it_told_the_term_it_won(self):
        """The primary loses one of its two backups, claims the next term with the other one as its member, and is killed as that
        is decided: the member asks for the same term, and gets the one after it."""
        (port,), claims = free_ports(1), self.file_arbiter()
        shared = ("--arbiter", claims, "--heartbeat-ms", "50", "--timeout-ms", "30000")
        primary = self.start("primary", "primary", "--key", str(self.folder / "a"), "--peer-key", str(self.folder / "b.pub"), "--listen",
                             f"127.0.0.1:{port}", "--kernel", GUEST, "--memory", "64M", "--console", "none", *shared)
        self.wait_for("primary", "backups may join")
        cable = Cable(port)
        self.addCleanup(cable.break_off)
        backups = []
        for number, (log, to_port) in enumerate((("lost", port), ("member", cable.port))):
            backups.append(self.start(log, "backup", "--join", f"127.0.0.1:{to_port}", "--key", str(self.folder / "b"), "--peer-key",
                                      str(self.folder / "a.pub"), *shared))
            self.wait_for("primary", f"backup {number}: protecting")
        cable.hold()
        backups[0].kill()
        self.wait_until(lambda: self.claims() == [1, 2])
        primary.kill()
        primary.wait()
        cable.break_off()
        self.wait_for("member", "term 3 is this replica's")
        self.wait_for("member", "runs unprotected now")
        self.assertNotIn("term 2 is this replica's", (self.folder / "member").read_text())
        self.assertEqual(self.claims(), [1, 2, 3])

    def test_a_stranger_does_not_join(self):
        self.start_primary_alone()
        subprocess.run([POLLUX, "keygen", self.folder / "c"], check=True, stdout=subprocess.DEVNULL)
        stranger = self.start("stranger", "backup", "--join", f"127.0.0.1:{self.ports['a']}", "--key",
                              str(self.folder / "c"), "--peer-key", str(self.folder / "a.pub"), "--arbiter", "none")
        self.wait_for("stranger", "trying again")
        stranger.kill()
        stranger.wait()
        self.wait_for("primary", "dropped a connection from .*: the peer's key is not accepted here")
        self.assertNotIn("joins", (self.folder / "primary").read_text())
        self.join("friend", "b")
        self.wait_for("primary", "backup 0: protecting")

    def test_nobody_goes_on_while_the_arbiter_is_away(self):
        self.etcd_ports = free_ports(2)
        etcd = self.start_etcd()
        self.wait_for("etcd", "ready to serve client requests")
        self.start_both(f"etcd:http://127.0.0.1:{self.etcd_ports[0]}", 2000, 20_000)
        etcd.kill()
        etcd.wait()
        self.assertIsNone(self.backup.poll())
        self.assertNotIn("is lost", (self.folder / "backup").read_text() + (self.folder / "primary").read_text())
        self.primary.kill()
        self.wait_for("backup", "cannot be asked")
        self.assertNotIn("failover", (self.folder / "backup").read_text())
        self.start_etcd()
        self.wait_for("backup", "runs unprotected now")


if __name__ == "__main__":
    unittest.main(verbosity=2)
