"""Addresses of the lab, and the kernel command lines of its hosts and its guest."""
import re
from pathlib import Path

CLIENT_IP = "10.77.0.1"
GUEST_IP = "10.77.0.10"
HOST_IPS = {"castor": "10.77.0.2", "pollux": "10.77.0.3"}

# Measured for speed (see README.md). The greatest gain is `quiet`: each byte on an emulated serial
# console costs several VM exits.
GUEST_CMDLINE = ("console=ttyS0 quiet panic=-1 mitigations=off nokaslr random.trust_cpu=on "
                 "cryptomgr.notests noreplace-smp audit=0 8250.nr_uarts=1 ipv6.disable=1")
HOST_CMDLINE = ("console=ttyS0 quiet panic=-1 mitigations=off nokaslr no_timer_check random.trust_cpu=on "
                "cryptomgr.notests noreplace-smp audit=0 8250.nr_uarts=1 ipv6.disable=1")


def guest_cmdline(*words: str, ip: str = GUEST_IP) -> str:
    """The kernel command line of the lab's guest, with further words such as guest.shell."""
    return " ".join([GUEST_CMDLINE, f"guest.ip={ip}/24", *words])


def tsc_words() -> str:
    """Tells an emulated kernel the speed of its TSC, which under TCG is this machine's own.

    On busy cores a kernel fails to measure it with an emulated timer; then it hangs (microvm has no
    second timer) or gives the TSC up for a slow clock. A KVM guest needs no such word: it has kvm-clock.
    """
    found = re.search(r"cpu MHz\s*: ([\d.]+)", Path("/proc/cpuinfo").read_text())
    return f"tsc=reliable tsc_early_khz={round(float(found.group(1)) * 1000)}" if found else ""
