"""The lab's guest under plain QEMU: one level of emulation, no Pollux.

QEMU's microvm machine announces virtio-mmio devices by ACPI as our VMM does, so this shows that
the guest's images are sound, and what a client sees without replication.
"""
from pathlib import Path

import paths
from lab import Lab
from machine import Machine
from settings import guest_cmdline, tsc_words

GUEST_MAC = "52:54:00:77:00:10"
GUEST_TAP = "tap-guest"


def console_socket(lab: Lab) -> Path:
    """The Unix socket at the other end of the guest's /dev/hvc0."""
    return lab.folder / "guest.hvc"


def start(lab: Lab, *words: str, disk: Path | None = None, console_device: bool = False,
          kernel: Path = paths.KERNEL, initrd: Path | None = None, memory_mib: int = 256) -> Machine:
    """Starts the guest with further kernel words. Without a disk it is the diskless shell guest."""
    initrd = initrd or (paths.GUEST_INITRD if disk else paths.GUEST_SHELL_INITRD)
    command = ["qemu-system-x86_64", "-accel", "tcg,tb-size=128", "-cpu", "EPYC", "-smp", "1", "-m", str(memory_mib),
               "-machine", "microvm,acpi=on,pcie=off,rtc=on,isa-serial=on,usb=off",
               "-global", "virtio-mmio.force-legacy=false",
               "-kernel", str(kernel), "-initrd", str(initrd), "-append", guest_cmdline(tsc_words(), *words)]
    if disk:
        lab.add_tap(GUEST_TAP)
        command += ["-drive", f"file={disk},format=raw,if=none,id=root,cache=writeback,discard=unmap",
                    "-device", "virtio-blk-device,drive=root",
                    "-netdev", f"tap,id=lan,ifname={GUEST_TAP},script=no,downscript=no",
                    "-device", f"virtio-net-device,netdev=lan,mac={GUEST_MAC}",
                    "-device", "virtio-rng-device"]
    if console_device:
        command += ["-device", "virtio-serial-device", "-device", "virtconsole,chardev=hvc",
                    "-chardev", f"socket,id=hvc,path={console_socket(lab)},server=on,wait=off"]
    machine = Machine("guest", lab.folder, command)
    lab.machines.append(machine)
    return machine
