"""What a test asks of a host, and the lab's own: a whole machine, emulated, that can lose its power."""
import shlex
import threading
from dataclasses import dataclass
from pathlib import Path

import hardware
import namespace
import paths
from command_channel import Command, CommandTimeout, HostDied
from machine import LabError, Machine, fresh_file, wait_until
from settings import HOST_CMDLINE, tsc_words

BRIDGE = "lan0"
HOST_MEMORY_MIB = 1500
BOOT_TIMEOUT = 90      # seconds; a boot takes about 5 on an idle machine


@dataclass
class Result:
    """What a command wrote (standard output and error together) and its exit code."""
    code: int
    raw: bytes

    @property
    def output(self) -> str:
        return self.raw.decode(errors="replace")


class Job:
    """A command that runs on a host while the test goes on. Its output grows in `log`, a local file."""
    code: int | None = None           # the exit code, once it has ended
    lost: Exception | None = None     # why the exit code will never be known, if so

    def __init__(self, host: "AnyHost", script: str, log: Path):
        self.host, self.script, self.log = host, script, log

    @property
    def running(self) -> bool:
        raise NotImplementedError

    @property
    def pid(self) -> int:
        """The command's process group, as its host knows it."""
        raise NotImplementedError

    def _join(self, timeout: float):
        """Waits for the end, but no longer."""
        raise NotImplementedError

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self, timeout: float = 60) -> int:
        """Waits for the end and returns the exit code; LabError if it takes longer or the host died."""
        self._join(timeout)
        if self.running:
            raise LabError(f"no end within {timeout:.0f} s: {self.script} (output: {self.log})")
        if self.code is None:
            raise LabError(str(self.lost))
        return self.code

    def wait_for(self, text: str, timeout: float = 60) -> str:
        """Waits until the output holds `text`; returns the first line with it."""
        def found():
            ended = not self.running
            for line in self.output().splitlines():
                if text in line:
                    return line
            if ended:
                raise LabError(f"ended ({self.lost or self.code}) before it wrote '{text}': "
                               f"{self.script} (output: {self.log})")
            return None
        return wait_until(found, timeout, f"'{text}' in {self.log}")

    def kill(self, sig: str = "KILL"):
        """Sends a signal to the command and all its children, unless it has ended: its number may be another's now."""
        if self.running:
            self.host.kill(self.pid, sig)


class AnyHost:
    """Where guests run: a lab host, or this machine (local_host.py). What tests ask of both is the same.

    File names are the host's own and never need quotes.
    """
    name: str
    kernel: str            # the stock kernel for guests
    guest_initrd: str      # for the guest with a disk
    shell_initrd: str      # for the guest without one
    folder: str            # for a test's files

    def run(self, command: str, timeout: float = 60, *, check: bool = True, stdin: bytes = b"") -> Result:
        """Runs a shell command to its end. With check, an exit code other than 0 is a LabError."""
        raise NotImplementedError

    def spawn(self, command: str, log: str) -> Job:
        """Starts a command; its output goes to <run folder>/<host>-<log>.log."""
        raise NotImplementedError

    def kill(self, group: int, sig: str):
        """Sends a signal to a process group; one that has ended does not matter."""
        raise NotImplementedError

    def add_tap(self, name: str):
        """A TAP on the LAN, for a guest."""
        raise NotImplementedError

    def disk(self, index: int) -> str:
        """The name of a disk that the host was started with."""
        raise NotImplementedError

    def power_off(self):
        """Everything on the host ends at once."""
        raise NotImplementedError

    def file(self, name: str) -> str:
        """The name for a file of the test's."""
        return f"{self.folder}/{name}"

    def put(self, local: Path | bytes, remote: str, *, mode: str = "644", timeout: float = 120):
        """Copies a local file, or these bytes, to the host."""
        data = local if isinstance(local, bytes) else Path(local).read_bytes()
        target = shlex.quote(remote)
        self.run(f"mkdir -p $(dirname {target}) && cat > {target} && chmod {mode} {target}", timeout, stdin=data)

    def get(self, remote: str, local: Path | None = None, *, timeout: float = 120) -> bytes:
        """Returns the bytes of a file on the host, and writes them to `local` if given."""
        data = self.run(f"cat {shlex.quote(remote)}", timeout).raw
        if local is not None:
            Path(local).write_bytes(data)
        return data

    def _checked(self, result: Result, command: str, check: bool) -> Result:
        if check and result.code:
            raise LabError(f"{self.name}: exit code {result.code}: {command}\n{result.output}")
        return result


class HostJob(Job):
    """A job on a lab host: a thread follows its output, which so outlives the host."""

    def __init__(self, host: "Host", command: Command, log: Path):
        super().__init__(host, command.script, log)
        self._command = command
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self):
        try:
            with open(self.log, "wb", buffering=0) as log:
                for piece in self._command:
                    log.write(piece)
            self.code = self._command.code
        except (HostDied, CommandTimeout, OSError) as error:
            self.lost = error

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    @property
    def pid(self) -> int:
        wait_until(lambda: self._command.pid or self.lost, 30, f"start of {self.script}")
        if not self._command.pid:
            raise LabError(f"{self.script}: {self.lost}")
        return self._command.pid

    def _join(self, timeout: float):
        self._thread.join(timeout)


def accelerator() -> list[str]:
    """QEMU's words for the CPU of a lab host. Its KVM needs VT-x or SVM: this machine's own, if it passes them on."""
    if hardware.accelerates_hosts():
        return ["-accel", "kvm", "-cpu", "host"]
    return ["-accel", "tcg,tb-size=256", "-cpu", "EPYC,+svm,+npt"]


class Host(Machine, AnyHost):
    """A lab host: stock Debian kernel with KVM. Emulated by TCG (SVM with nested paging), or run by a nesting KVM."""
    kernel, guest_initrd, shell_initrd = "/guest/vmlinuz", "/guest/initrd.cpio", "/guest/shell-initrd.cpio"
    folder = "/tmp"

    def __init__(self, lab: "Lab", name: str, ip: str, disks: list[Path], *,
                 memory_mib: int = HOST_MEMORY_MIB, npt: bool = True, cmdline: str = ""):
        self.lab, self.ip, self.disks = lab, ip, disks
        self.tap = f"tap-{name}"
        number = int(ip.rsplit(".", 1)[1])
        self.port = 7700 + number
        lab.add_tap(self.tap)
        # Under KVM the host has kvm-clock, and this machine's "cpu MHz" need not be the speed of its TSC.
        tsc = "" if hardware.accelerates_hosts() else tsc_words()
        words = f"{HOST_CMDLINE} {tsc} pollux.name={name} pollux.ip={ip}/24 pollux.npt={int(npt)} {cmdline}"
        command = ["qemu-system-x86_64", "-name", name, *accelerator(),
                   "-smp", "1", "-m", str(memory_mib),
                   "-kernel", str(paths.KERNEL_ELF), "-initrd", str(paths.HOST_INITRD), "-append", words.strip(),
                   "-netdev", f"tap,id=lan,ifname={self.tap},script=no,downscript=no",
                   "-device", f"virtio-net-pci,netdev=lan,mac=52:54:00:77:00:{number:02x},addr=3,romfile=",
                   "-netdev", f"user,id=control,restrict=on,ipv6=off,hostfwd=tcp:127.0.0.1:{self.port}-10.0.2.15:80",
                   "-device", "virtio-net-pci,netdev=control,addr=4,romfile="]
        for index, disk in enumerate(disks):
            command += ["-drive", f"file={disk},format=raw,if=none,id=disk{index},cache=writeback,discard=unmap",
                        "-device", f"virtio-blk-pci,drive=disk{index},addr={5 + index}"]
        super().__init__(name, lab.folder, command)

    def wait_ready(self, timeout: float = BOOT_TIMEOUT) -> "Host":
        """Waits until the host takes commands."""
        self.wait_console(f"pollux-host: ready {self.name}", timeout)
        self.run("true", timeout=timeout)
        return self

    def run(self, command: str, timeout: float = 60, *, check: bool = True, stdin: bytes = b"") -> Result:
        channel = Command(self.port, command, stdin, timeout)
        pieces = []
        try:
            for piece in channel:
                pieces.append(piece)
        except CommandTimeout:
            if channel.pid and not command.startswith("kill "):
                self.kill(channel.pid, "KILL")
            raise LabError(f"{self.name}: no end within {timeout:.0f} s: {command}\n"
                           + b"".join(pieces).decode(errors="replace")) from None
        except HostDied as error:
            raise LabError(f"{self.name}: {error} (console: {self.console.path})") from None
        return self._checked(Result(channel.code, b"".join(pieces)), command, check)

    def spawn(self, command: str, log: str, *, timeout: float = 3600) -> Job:
        """The log is written here, not there: a power failure spares it."""
        file = fresh_file(self.lab.folder, f"{self.name}-{log}", ".log")
        return HostJob(self, Command(self.port, command, timeout=timeout), file)

    def kill(self, group: int, sig: str):
        self.run(f"kill -{sig} -{group}", check=False, timeout=10)

    def add_tap(self, name: str):
        self.run(f"tunctl -t {name} && ip link set {name} master br0 && ip link set {name} up")

    def disk(self, index: int) -> str:
        return f"/dev/vd{chr(ord('a') + index)}"

    def reset(self):
        """The host's own hardware resets it, at once: nothing is flushed, nobody is told. It is off then; start it again."""
        self.spawn("echo b > /proc/sysrq-trigger", "reset")
        self.wait_end(30)

    def unplug(self):
        """Cuts the host off the LAN; commands still reach it."""
        namespace.ip("link", "set", self.tap, "nomaster")

    def plug(self):
        """Joins the host to the LAN again."""
        namespace.ip("link", "set", self.tap, "master", BRIDGE)
