#!/usr/bin/python3
"""Checks the client, the verifier and the AOF reader against a Redis on this machine. Takes two seconds."""
import socket
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

sys.dont_write_bytecode = True

import aof
import demo
import images
import namespace
import paths
from redis_client import (Acknowledged, RedisClient, RedisError, Workload, check_data, check_replies, lost_from_data,
                          wait_for_redis)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class LocalRedis(unittest.TestCase):
    """One redis-server with the guest's configuration and ten rounds of the workload."""

    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.port = free_port()
        self.server = subprocess.Popen(
            ["redis-server", paths.HERE / "guest/redis.conf", "--port", str(self.port), "--dir", self.folder.name,
             "--bind", "127.0.0.1", "--logfile", Path(self.folder.name, "log")],
            preexec_fn=namespace.die_with_parent)
        wait_for_redis("127.0.0.1", 20, self.port)
        self.client = RedisClient("127.0.0.1", self.port)
        workload = Workload(self.client)
        rounds = iter(range(10))
        workload.run(lambda: next(rounds, None) is not None)

    def tearDown(self):
        self.client.close()
        self.server.kill()
        self.server.wait()
        self.folder.cleanup()

    def read_aof(self) -> aof.Aof:
        return aof.read(Path(self.folder.name, "appendonlydir"))

    def test_a_sound_run_has_no_problems(self):
        journal = list(self.client.journal)
        self.assertEqual(len(journal), 30)
        self.assertEqual(check_replies(journal), [])
        self.assertEqual(check_data(journal, self.client), [])
        self.assertEqual(aof.check(self.read_aof(), journal), [])

    def test_a_lost_write_is_found(self):
        journal = self.client.journal + [Acknowledged(("INCR", "work:counter"), 11, 0, 0)]
        self.assertEqual(len(check_data(journal, self.client)), 1)
        self.assertIn("not in the AOF", aof.check(self.read_aof(), journal)[0])

    def test_a_repeated_write_is_found(self):
        journal = list(self.client.journal)
        self.client.command("INCR", "work:counter")
        self.assertIn("never asked for", aof.check(self.read_aof(), journal)[0])
        self.assertEqual(len(check_data(journal, self.client)), 1)

    def test_an_unanswered_write_may_be_there_or_not(self):
        journal = list(self.client.journal)
        unanswered = ("RPUSH", "work:list", "last")
        for _ in range(2):
            self.assertEqual(check_data(journal, self.client, unanswered), [])
            self.assertEqual(aof.check(self.read_aof(), journal, unanswered), [])
            self.client.command(*unanswered)
        self.assertEqual(len(check_data(journal, self.client, unanswered)), 1)

    def test_each_lost_write_is_counted_once(self):
        """The 30 writes are INCR, RPUSH and APPEND in turn."""
        journal, written = list(self.client.journal), self.read_aof()
        self.assertEqual(lost_from_data(journal, self.client), set())
        self.assertEqual(aof.lost(written, journal), set())
        with RedisClient("127.0.0.1", self.port) as vandal:  # keeps its doings out of the journal
            vandal.command("LREM", "work:list", 1, "work-000003")
            vandal.command("DECRBY", "work:counter", 2)
            vandal.command("SET", "work:string", vandal.command("GET", "work:string").replace("work-000002;", ""))
        in_data = lost_from_data(journal, self.client)
        self.assertEqual(in_data, {3 * 2 + 1, 3 * 8, 3 * 9, 3 * 1 + 2})
        holes = {3 * 2 + 1, 3 * 4 + 1, 3 * 9}  # the first and the last are lost from Redis too
        torn = aof.Aof([c for number, c in enumerate(written.commands) if number not in holes], 0)
        self.assertEqual(aof.lost(torn, journal), holes)
        self.assertEqual(len(in_data | aof.lost(torn, journal)), 5)
        self.assertIn("3 acknowledged writes are not in the AOF; the first that is not where it belongs is RPUSH",
                      aof.check(torn, journal)[0])
        with RedisClient("127.0.0.1", self.port) as vandal:
            vandal.command("FLUSHALL")
        self.assertEqual(lost_from_data(journal, self.client), set(range(30)))
        self.assertEqual(aof.lost(aof.Aof([], 0), journal), set(range(30)))

    def test_writes_out_of_order_are_a_problem_but_not_lost(self):
        journal, written = list(self.client.journal), self.read_aof()
        written.commands[1], written.commands[4] = written.commands[4], written.commands[1]
        self.assertEqual(aof.lost(written, journal), set())
        self.assertIn("order is wrong", aof.check(written, journal)[0])

    def test_keys_that_were_overwritten_are_not_counted(self):
        for command in (("SET", "work:counter", "0"), ("DEL", "work:list")):
            self.client.command(*command)
        self.assertEqual(lost_from_data(self.client.journal, self.client), set())

    def test_a_wrong_reply_is_found(self):
        journal = list(self.client.journal)
        journal[3] = Acknowledged(journal[3].command, 1, 0, 0)  # the second INCR answers 1 again
        self.assertEqual(len(check_replies(journal)), 1)

    def test_a_refused_command_is_not_acknowledged(self):
        with self.assertRaises(RedisError):
            self.client.command("INCR", "work:list")
        self.assertEqual(len(self.client.journal), 30)

    def test_the_aof_comes_out_of_an_ext4_image(self):
        disk = Path(self.folder.name, "disk.ext4")
        tree = images.Tree(Path(self.folder.name, "tree"))
        for file in Path(self.folder.name, "appendonlydir").iterdir():
            tree.add(file, f"{aof.FOLDER_IN_GUEST}/{file.name}", 0o644)
        tree.to_ext4(disk, 64, images.GUEST_ROOT_UUID)
        folder = aof.extract(disk, Path(self.folder.name, "out"))
        self.assertEqual(aof.check(aof.read(folder), self.client.journal), [])


class Report(unittest.TestCase):
    def test_nothing_lost_no_problems_and_one_connection(self):
        sound = {"connection_survived": True, "lost": 0, "problems": []}
        self.assertTrue(demo.held(sound))
        for wrong in ({"connection_survived": False}, {"lost": 1}, {"problems": ["the AOF's order is wrong"]}):
            self.assertFalse(demo.held(sound | wrong), wrong)


class Parser(unittest.TestCase):
    first = b"*2\r\n$6\r\nSELECT\r\n$1\r\n0\r\n#TS:1\r\n"
    last = b"*2\r\n$4\r\nINCR\r\n$1\r\nk\r\n"

    def test_a_torn_end_is_counted(self):
        for length in range(len(self.last)):
            self.assertEqual(aof.parse(self.first + self.last[:length]), ([("SELECT", "0")], length))
        self.assertEqual(aof.parse(self.first + self.last), ([("SELECT", "0"), ("INCR", "k")], 0))

    def test_damage_before_the_end_is_an_error(self):
        with self.assertRaises(aof.AofError):
            aof.parse(self.first + b"!" + self.last)


if __name__ == "__main__":
    unittest.main()
