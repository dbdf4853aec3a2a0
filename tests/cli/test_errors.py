#!/usr/bin/python3
"""Bad input gives one line on standard error, which names the option, and exit code 2 (1 when a host is at fault)."""
import os
import re
import resource
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

from kvm_device import needs_kvm

POLLUX = os.environ["POLLUX_BIN"]
GUEST = os.environ["POLLUX_PAGE_WRITER"]


HOST_MIB = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20


def pollux(*words: str, address_space_mib: int | None = None) -> subprocess.CompletedProcess:
    """`address_space_mib`: no more than so much can be mapped."""
    def limit():
        if address_space_mib:
            resource.setrlimit(resource.RLIMIT_AS, (address_space_mib << 20,) * 2)
    return subprocess.run([POLLUX, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30,
                          preexec_fn=limit)


class Errors(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.key = str(self.folder / "a")
        pollux("keygen", self.key)

    def refused(self, named: str, *words: str, code: int = 2, **limits: int):
        with self.subTest(" ".join(words)):
            result = pollux(*words, **limits)
            self.assertEqual(result.returncode, code, result.stderr)
            lines = [line for line in result.stderr.splitlines() if line.startswith("pollux: ")]
            self.assertEqual(len(lines), 1, result.stderr)
            self.assertIn(named, lines[0])

    def test_commands(self):
        self.refused("foo: no such command; there are vm, primary, backup, keygen, ctl, chaos", "foo")
        self.refused("foo: no such command", "--log-level", "info", "foo", "--kernel", GUEST)
        self.refused("subcommand is required")

    @needs_kvm
    def test_kernels(self):
        self.refused("--kernel /missing", "vm", "--kernel", "/missing")
        self.refused("--kernel", "vm", "--kernel", "/etc/passwd")
        self.refused("--initrd", "vm", "--kernel", GUEST, "--initrd", "/missing")

    def test_vm(self):
        self.refused("--kernel", "vm")
        for wrong in ("12Q", "0", "5K", "99999999999999999999G"):
            self.refused("--memory", "vm", "--kernel", GUEST, "--memory", wrong)
        self.refused("--cpus", "vm", "--kernel", GUEST, "--cpus", "9")
        self.refused("--disk", "vm", "--kernel", GUEST, "--disk", "/missing")
        self.refused("--net", "vm", "--kernel", GUEST, "--net", "tap=missing0")
        self.refused("--net", "vm", "--kernel", GUEST, "--net", "tap=x,mac=nonsense")
        self.refused("--console", "vm", "--kernel", GUEST, "--console", "nonsense")
        self.refused("--dirty-log", "vm", "--kernel", GUEST, "--dirty-log", "nonsense")
        self.refused("--log-level", "--log-level", "nonsense", "vm", "--kernel", GUEST)

    def test_sizes_of_memory(self):
        primary = ("primary", "--kernel", GUEST, "--backup", "h:1", "--key", self.key, "--peer-key", self.key + ".pub",
                   "--arbiter", "none")
        backup = ("backup", "--listen", "127.0.0.1:0", "--key", self.key, "--peer-key", self.key + ".pub", "--arbiter", "none")
        too_much = f"{HOST_MIB + 1}M"
        for wrong in ("5000T", too_much):
            self.refused(f"--memory {wrong}: this host has {HOST_MIB}M", "vm", "--kernel", GUEST, "--memory", wrong)
        self.refused("--memory 8M: expected at least 16M", "vm", "--kernel", GUEST, "--memory", "8M")
        self.refused("--memory", *primary, "--memory", too_much)
        for option in ("--staging", "--held", "--backup-staging"):
            self.refused(f"{option} {too_much}: this host has", *primary, option, too_much)
            self.refused(f"{option} 1M: expected at least", *primary, option, "1M")
        for option in ("--staging", "--held", "--primary-staging"):
            self.refused(f"{option} {too_much}: this host has", *backup, option, too_much)
            self.refused(f"{option} 1M: expected at least", *backup, option, "1M")
        self.refused("--staging 143M: expected at least 144M", *backup, "--staging", "143M")

    @needs_kvm
    def test_memory_that_the_host_does_not_give(self):
        """Less than it has in all, but more than this process may map."""
        self.refused("--memory", "vm", "--kernel", GUEST, "--memory", f"{HOST_MIB * 3 // 4}M", "--console", "none",
                     address_space_mib=HOST_MIB // 2)

    def test_what_is_given_twice(self):
        disk, other = self.folder / "disk", self.folder / "other-name"
        disk.write_bytes(bytes(1 << 20))
        other.symlink_to(disk)
        vm = ("vm", "--kernel", GUEST)
        self.refused(f"--disk {other}: given twice", *vm, "--disk", str(disk), "--disk", str(other))
        self.refused(f"--disk {disk},ro: given twice", *vm, "--disk", str(disk), "--disk", f"{disk},ro")
        self.refused("--net tap=t0: TAP t0 is given twice", *vm, "--net", "tap=t0", "--net", "tap=t0")
        mac = "mac=52:54:00:12:34:56"
        self.refused("--net: MAC address 52:54:00:12:34:56 is given twice", *vm, "--net", f"tap=t0,{mac}",
                     "--net", f"tap=t1,{mac}")
        # The second NIC's default.
        self.refused("is given twice", *vm, "--net", "tap=t0,mac=52:50:4f:4c:58:02", "--net", "tap=t1")

    def test_a_backup_writes_its_disks(self):
        disk = self.folder / "disk"
        disk.write_bytes(bytes(1 << 20))
        keys = ("--key", self.key, "--peer-key", self.key + ".pub", "--arbiter", "none", "--disk", f"{disk},ro")
        self.refused(f"--disk {disk},ro: a backup must be able to write", "backup", "--listen", "127.0.0.1:0", *keys)
        self.refused(f"--disk {disk},ro: with --rejoin it must be able to write", "primary", "--kernel", GUEST, "--console",
                     "none", "--backup", "h:1", "--rejoin", "h:1", *keys)

    def test_consoles_that_nobody_reads(self):
        fifo = self.folder / "fifo"
        os.mkfifo(fifo)
        self.refused("--console: ", "vm", "--kernel", GUEST, "--console", f"file={fifo}")

    def test_config_file(self):
        config = self.folder / "vm.toml"
        config.write_text('cpus = 9\n')
        self.refused("--cpus 9", "vm", "--config", str(config), "--kernel", GUEST)
        config.write_text(f'kernel = "{GUEST}"\nno-such-key = 1\n')
        self.refused(f"--config {config}: line 2: unknown key 'no-such-key'", "vm", "--config", str(config))
        config.write_text(f'kernel = "{GUEST}"\nmemory = 256M\n')
        self.refused(f"--config {config}: line 2: ", "vm", "--config", str(config))

    def test_every_option_may_stand_in_a_file(self):
        """It is found; a date is no value for any."""
        config = self.folder / "all.toml"
        for command in ("vm", "primary", "backup"):
            options = set(re.findall(r"^ +(?:-\w,)?--([a-z-]+)", pollux(command, "--help").stdout, re.M)) - {"help", "config"}
            self.assertGreater(len(options), 10)
            for option in sorted(options):
                config.write_text(f"\n{option} = 1979-05-27\n")
                self.refused(f"--config {config}: line 2: {option}: expected ", command, "--config", str(config))

    def test_missing_config_files(self):
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
        self.refused("--strategy maybe", *primary, "--backup", "h:1", *keys, "--strategy", "maybe")
        self.refused("--strategy lockstep: only with --profile deterministic", *primary, "--backup", "h:1", *keys,
                     "--strategy", "lockstep")
        self.refused("--commit maybe", *primary, "--backup", "h:1", *keys, "--commit", "maybe")
        for lag in ("0", "513"):
            self.refused("--max-lag: expected 1 to 512", *primary, "--backup", "h:1", *keys, "--max-lag", lag)
        self.refused("expected --backup, --listen or both", *primary, *keys)
        self.refused("--listen", *primary, "--listen", "nowhere", *keys)
        self.refused("--listen", "backup", "--listen", "nowhere", *keys)
        self.refused("expected --listen, --join or both", "backup", *keys)
        self.refused("--join", "backup", "--join", "nowhere", *keys)
        self.refused("--epoch-ms", "backup", "--join", "127.0.0.1:1", *keys, "--epoch-ms", "0")
        self.refused("--timeline", "backup", "--listen", "127.0.0.1:0", *keys, "--timeline", "/missing/file")

    @needs_kvm
    def test_no_backup_there(self):
        self.refused("no backup could be reached", "primary", "--kernel", GUEST, "--console", "none", "--backup", "127.0.0.1:1",
                     "--key", self.key, "--peer-key", self.key + ".pub", "--arbiter", "none", "--connect-timeout-ms", "300",
                     code=1)

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
