"""One emulated machine: a QEMU process and the console it writes."""
import shlex
import subprocess
import time
from pathlib import Path

import namespace

POLL = 0.05            # seconds between two looks at a condition


class LabError(Exception):
    """Something in the lab did not come about; the message says what, and where to look."""


def wait_until(condition, timeout: float, what: str):
    """Polls until condition() is true and returns its value; LabError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise LabError(f"{what}: not within {timeout:.0f} s")
        time.sleep(POLL)
    return value


def fresh_file(folder: Path, stem: str, suffix: str) -> Path:
    """A new empty file, such as castor.console or, if that exists, castor-2.console: evidence is kept."""
    path, number = folder / f"{stem}{suffix}", 1
    while path.exists():
        number += 1
        path = folder / f"{stem}-{number}{suffix}"
    path.touch()
    return path


class Console:
    """The file that a machine's serial console is written to."""

    def __init__(self, path: Path):
        self.path = path

    def text(self) -> str:
        return self.path.read_text(errors="replace") if self.path.exists() else ""

    def tail(self, lines: int = 15) -> str:
        return "\n".join(self.text().splitlines()[-lines:])


class Machine:
    """One QEMU process with a console. It dies with this program."""

    def __init__(self, name: str, folder: Path, command: list[str]):
        self.name = name
        self.console = Console(fresh_file(folder, name, ".console"))
        stem = self.console.path.stem   # has a number if the machine was started before
        command = [*command, "-nodefaults", "-display", "none", "-no-reboot",
                   "-serial", f"file:{self.console.path}"]
        (folder / f"{stem}.command").write_text(shlex.join(command) + "\n")
        self.errors = folder / f"{stem}.qemu"
        with open(self.errors, "wb") as errors:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors,
                                            preexec_fn=namespace.die_with_parent)

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def power_off(self):
        """The power fails: SIGKILL. What the machine had written to its disk files stays in them."""
        if self.running:
            self.process.kill()
        self.process.wait()

    def wait_console(self, text: str, timeout: float, after: int = 0) -> float:
        """Waits until the console shows `text` (beyond offset `after`); returns the seconds it took."""
        start = time.monotonic()

        def shown():
            ended = not self.running       # asked first: a last line may come with the end
            if text in self.console.text()[after:]:
                return True
            if ended:
                raise LabError(f"{self.name} ended")
            return False
        try:
            wait_until(shown, timeout, "waiting")
        except LabError as error:
            raise LabError(f"{error}: the console of {self.name} does not show '{text}'; "
                           f"{self.console.path} ends with:\n{self.console.tail()}\n"
                           f"QEMU said:\n{self._qemu_errors()}") from None
        return time.monotonic() - start

    def wait_end(self, timeout: float) -> int:
        """Waits until the machine has switched itself off; returns QEMU's exit code."""
        wait_until(lambda: not self.running, timeout, f"{self.name} switches itself off")
        return self.process.returncode

    def _qemu_errors(self) -> str:
        """What QEMU complained about, without its notes on CPU features that TCG lacks."""
        lines = self.errors.read_text(errors="replace").splitlines()
        return "\n".join(line for line in lines if "TCG doesn't support" not in line) or "(nothing)"
