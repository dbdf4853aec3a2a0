"""This machine as a host: guests run on its own KVM, inside the lab's network, at full speed.

It cannot lose its power alone. But it can lose all that was started on it at once: it is a PID namespace, whose first
process reads a pipe from this program. The pipe ends with power_off() or with this program, however that ends; with it
the namespace's first process, and with that, as the kernel promises, every process of the namespace.
"""
import os
import signal
import subprocess
import tempfile
from pathlib import Path

import namespace
import paths
from command_channel import HostDied
from host import AnyHost, Job, Result
from machine import LabError, fresh_file, wait_until
from settings import CLIENT_IP


class LocalJob(Job):
    """A job on this machine. It writes its log itself."""

    def __init__(self, host: "LocalHost", script: str, log: Path):
        super().__init__(host, script, log)
        with open(log, "wb") as output:
            self.process = host.start(script, stdin=subprocess.DEVNULL, stdout=output)

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def code(self) -> int | None:
        return None if self.running or self.lost else exit_code(self.process)

    def _join(self, timeout: float):
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            pass


class LocalHost(AnyHost):
    """Commands run in a folder of the host's own, relative to which all its names are. Its TAPs are the lab's."""
    kernel, guest_initrd, shell_initrd, folder = "vmlinuz", "initrd.cpio", "shell-initrd.cpio", "."

    def __init__(self, lab: "Lab", name: str, disks: list[Path]):
        self.lab, self.name, self.ip, self.disks = lab, name, CLIENT_IP, disks
        self.jobs: list[LocalJob] = []
        self.home = lab.folder / name
        self._furnish()
        self._namespace = subprocess.Popen(["unshare", "--pid", "--fork", "cat"],
                                           stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        wait_until(self._namespace_is_there, 10, f"{name}: a PID namespace")

    def _furnish(self):
        links = {self.kernel: paths.KERNEL, self.guest_initrd: paths.GUEST_INITRD,
                 self.shell_initrd: paths.GUEST_SHELL_INITRD, "bin/pollux": paths.pollux_binary()}
        links |= {self.disk(index): disk for index, disk in enumerate(self.disks)}
        for name, target in links.items():
            link = self.home / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(Path(target).resolve())

    @property
    def _namespace_file(self) -> str:
        return f"/proc/{self._namespace.pid}/ns/pid_for_children"

    def _namespace_is_there(self) -> bool:
        if not self.running:
            raise LabError(f"{self.name}: unshare made no PID namespace here")
        try:  # there is nothing to read until the namespace has its first process
            return os.readlink(self._namespace_file) != os.readlink("/proc/self/ns/pid")
        except FileNotFoundError:
            return False

    @property
    def running(self) -> bool:
        return self._namespace.poll() is None

    def power_off(self):
        for job in self.jobs:
            if job.running:  # one that is stopped would not let its child go
                job.lost = HostDied(f"the host went away during: {job.script}")
                self.kill(job.pid, "KILL")
        self._namespace.stdin.close()
        self._namespace.wait()
        for job in self.jobs:
            job.process.wait()

    def start(self, script: str, *, stdin, stdout) -> subprocess.Popen:
        """A shell inside the namespace. It, what it starts and what waits for it here are one process group."""
        if not self.running:
            raise LabError(f"{self.name}: has no power: {script}")
        path = f"{self.home / 'bin'}:{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
        # Only a child is inside. nsenter could fork it, but stops itself when the child stops, sometimes for good.
        join = ["nsenter", "--no-fork", f"--pid={self._namespace_file}", "unshare", "--fork"]
        return subprocess.Popen([*join, "sh", "-c", script], cwd=self.home, env={**os.environ, "PATH": path},
                                stdin=stdin, stdout=stdout, stderr=subprocess.STDOUT,
                                start_new_session=True, preexec_fn=namespace.die_with_parent)

    def run(self, command: str, timeout: float = 60, *, check: bool = True, stdin: bytes = b"") -> Result:
        # Files, not pipes: a child left in the background does not hold the command.
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as written:
            given.write(stdin)
            given.seek(0)
            process = self.start(command, stdin=given, stdout=written)
            in_time = self._ends(process, timeout)
            written.seek(0)
            result = Result(exit_code(process), written.read())
        if not in_time:
            raise LabError(f"{self.name}: no end within {timeout:.0f} s: {command}\n{result.output}")
        return self._checked(result, command, check)

    def _ends(self, process: subprocess.Popen, timeout: float) -> bool:
        try:
            process.wait(timeout)
            return True
        except subprocess.TimeoutExpired:
            self.kill(process.pid, "KILL")
            process.wait()
            return False

    def spawn(self, command: str, log: str) -> Job:
        job = LocalJob(self, command, fresh_file(self.lab.folder, f"{self.name}-{log}", ".log"))
        self.jobs.append(job)
        return job

    def kill(self, group: int, sig: str):
        try:
            os.killpg(group, signal.Signals[f"SIG{sig}"])
        except ProcessLookupError:
            pass

    def add_tap(self, name: str):
        self.lab.add_tap(name)

    def disk(self, index: int) -> str:
        return f"vd{chr(ord('a') + index)}"


def exit_code(process: subprocess.Popen) -> int:
    """As a shell gives it: 128 and the number of the signal that ended the process."""
    return process.returncode if process.returncode >= 0 else 128 - process.returncode
