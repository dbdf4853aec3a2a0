#!/usr/bin/python3
"""Bad input gives one line on standard error, which names the option, and exit code 2 (1 when a host is at fault)."""
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

POLLUX = os.environ["POLLUX_BIN"]
GUEST = os.environ["POLLUX_PAGE_WRITER"]


def pollux(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([POLLUX, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30)


class Errors(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.key = str(self.folder / "a")
        pollux("keygen", self.key)

    def refused(self, named: str, *words: str, code: int = 2):
        with self.subTest(" ".join(words)):
            result = pollux(*words)
            self.assertEqual(result.returncode, code, result.stderr)
            lines = [line for line in result.stderr.splitlines() if line.startswith("pollux: ")]
            self.assertEqual(len(lines), 1, result.stderr)
            self.assertIn(named, lines[0])

    def test_commands(self):
        self.refused("foo: no such command; there are vm, primary, backup, keygen, ctl, chaos", "foo")
        self.refused("foo: no such command", "--log-level", "info", "foo", "--kernel", GUEST)
        self.refused("subcommand is required")

    def test_vm(self):
        self.refused("--kernel /missing", "vm", "--kernel", "/missing")
        self.refused("--kernel", "vm", "--kernel", "/etc/passwd")
        self.refused("--kernel", "vm")
        for wrong in ("12Q", "0", "5K", "99999999999999999999G"):
            self.refused("--memory", "vm", "--kernel", GUEST, "--memory", wrong)
        self.refused("--cpus", "vm", "--kernel", GUEST, "--cpus", "9")
        self.refused("--disk", "vm", "--kernel", GUEST, "--disk", "/missing")
        self.refused("--net", "vm", "--kernel", GUEST, "--net", "tap=missing0")
        self.refused("--net", "vm", "--kernel", GUEST, "--net", "tap=x,mac=nonsense")
        self.refused("--initrd", "vm", "--kernel", GUEST, "--initrd", "/missing")
        self.refused("--console", "vm", "--kernel", GUEST, "--console", "nonsense")
        self.refused("--dirty-log", "vm", "--kernel", GUEST, "--dirty-log", "nonsense")
        self.refused("--log-level", "--log-level", "nonsense", "vm", "--kernel", GUEST)

    def test_config_file(self):
        config = self.folder / "vm.toml"
        config.write_text('kernel = "/missing"\n')
        self.refused("--kernel /missing", "vm", "--config", str(config))
        config.write_text(f'kernel = "{GUEST}"\nno-such-key = 1\n')
        self.refused(f"{config}: unknown key 'no-such-key'", "vm", "--config", str(config))
        self.refused("--config", "vm", "--config", "/missing.toml")

    def test_replication(self):
        primary = ("primary", "--kernel", GUEST, "--console", "none")
        keys = ("--key", self.key, "--peer-key", self.key + ".pub", "--arbiter", "none")
        self.refused("--backup", *primary, "--backup", "nowhere", *keys)
        self.refused("--key", *primary, "--backup", "h:1", "--key", "/missing", "--peer-key", self.key + ".pub",
                     "--arbiter", "none")
        self.refused("--peer-key", *primary, "--backup", "h:1", "--key", self.key, "--peer-key", "/missing", "--arbiter", "none")
        self.refused("--stats", *primary, "--backup", "h:1", *keys, "--stats", "/missing/file")
        self.refused("--timeout-ms", *primary, "--backup", "h:1", *keys, "--timeout-ms", "99999999999")
        self.refused("--on-divergence", *primary, "--backup", "h:1", *keys, "--on-divergence", "maybe")
        self.refused("no backup could be reached", *primary, "--backup", "127.0.0.1:1", *keys,
                     "--connect-timeout-ms", "300", code=1)
        self.refused("expected --backup, --listen or both", *primary, *keys)
        self.refused("--listen", *primary, "--listen", "nowhere", *keys)
        self.refused("--listen", "backup", "--listen", "nowhere", *keys)
        self.refused("expected --listen, --join or both", "backup", *keys)
        self.refused("--join", "backup", "--join", "nowhere", *keys)
        self.refused("--epoch-ms", "backup", "--join", "127.0.0.1:1", *keys, "--epoch-ms", "0")
        self.refused("--timeline", "backup", "--listen", "127.0.0.1:0", *keys, "--timeline", "/missing/file")

    def test_arbiter(self):
        backup = ("backup", "--listen", "127.0.0.1:0", "--key", self.key, "--peer-key", self.key + ".pub")
        self.refused("--arbiter is required", *backup)
        self.refused("--arbiter", *backup, "--arbiter", "nonsense")
        self.refused("--arbiter", *backup, "--arbiter", "file:/missing")
        self.refused("--arbiter", *backup, "--arbiter", "etcd:ftp://h")
        self.refused("--arbiter", *backup, "--arbiter", "none", "--etcd-user", "somebody")
        self.refused("--arbiter-timeout-ms", *backup, "--arbiter", "none", "--arbiter-timeout-ms", "0")

    def test_keys_are_never_overwritten(self):
        self.refused(self.key, "keygen", self.key)


if __name__ == "__main__":
    unittest.main(verbosity=2)
