"""Has this machine hardware virtualization? Decides what runs here and what must be emulated.

A /dev/kvm alone does not say so: there are software ones, under which a stock kernel boots for an hour. The CPU's
flags do. What cannot be decided in favour of the hardware runs emulated, which is slow and always works.
"""
import os
import re
from dataclasses import dataclass
from pathlib import Path

from machine import LabError

DIRECT = "POLLUX_LAB_DIRECT"
MODULES = {"vmx": "kvm_intel", "svm": "kvm_amd"}  # the CPU's flag -> the module that uses it


@dataclass(frozen=True)
class Hardware:
    """What this machine says about itself. Tests give other files."""
    cpuinfo: Path = Path("/proc/cpuinfo")
    kvm: Path = Path("/dev/kvm")
    modules: Path = Path("/sys/module")

    def flag(self) -> str | None:
        """vmx or svm, whichever the CPU has."""
        flags = re.search(r"^flags\s*:(.*)$", self.cpuinfo.read_text(), re.M)
        return next((flag for flag in MODULES if flags and flag in flags.group(1).split()), None)

    def virtualizes(self) -> bool:
        """Whether stock guests run here at full speed."""
        return self.flag() is not None and _opens(self.kvm)

    def nests(self) -> bool:
        """Whether a guest here can be a KVM host in turn."""
        if not self.virtualizes():
            return False
        nested = self.modules / MODULES[self.flag()] / "parameters/nested"
        return nested.exists() and nested.read_text().strip() in ("Y", "1")


def _opens(device: Path) -> bool:
    try:
        os.close(os.open(device, os.O_RDWR))
        return True
    except OSError:
        return False


def forced() -> bool | None:
    """What $POLLUX_LAB_DIRECT says: True (1), False (0) or nothing."""
    word = os.environ.get(DIRECT, "")
    if word not in ("", "0", "1"):
        raise LabError(f"{DIRECT}={word}: say 0 (emulate everything) or 1 (guests run on this machine)")
    return None if word == "" else word == "1"


def runs_direct(hardware: Hardware = Hardware()) -> bool:
    """Whether guests run on this machine itself; else on an emulated host."""
    return hardware.virtualizes() if forced() is None else forced()


def accelerates_hosts(hardware: Hardware = Hardware()) -> bool:
    """Whether the lab's hosts, which run guests in turn, may use KVM; else TCG. POLLUX_LAB_DIRECT=1 cannot force it."""
    return forced() is not False and hardware.nests()
