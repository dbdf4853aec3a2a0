"""Where things are: the repository, the cache folder, the images. Nothing here touches the disk."""
import os
from pathlib import Path

HERE = Path(__file__).resolve().parent


def repository() -> Path:
    """The repository root: two levels above tests/lab, or $POLLUX_REPO."""
    return Path(os.environ.get("POLLUX_REPO") or HERE.parent.parent).resolve()


def lab_dir() -> Path:
    """The cache folder for images and runs: $POLLUX_LAB_DIR, by default build/lab."""
    return Path(os.environ.get("POLLUX_LAB_DIR") or repository() / "build" / "lab").resolve()


def pollux_binary() -> Path:
    """The VMM under test: $POLLUX_BIN, by default the release build. It need not exist."""
    return Path(os.environ.get("POLLUX_BIN") or repository() / "build/release/cli/pollux").resolve()


PACKAGES = repository() / "build" / "packages"   # what `./run setup` has unpacked, and not installed
os.environ["PATH"] = f"{os.environ.get('PATH', '')}:{PACKAGES / 'bin'}"

IMAGES = lab_dir() / "images"
RUNS = lab_dir() / "runs"

KERNEL = IMAGES / "vmlinuz"                      # stock Debian cloud kernel, for hosts and guests
KERNEL_ELF = IMAGES / "vmlinux"                  # the same, decompressed, as the hosts start it
GUEST_INITRD = IMAGES / "guest-initrd.cpio"      # finds /dev/vda and starts it, or tests the devices
GUEST_SHELL_INITRD = IMAGES / "guest-shell-initrd.cpio"  # a shell, no disk, no modules
GUEST_ROOT = IMAGES / "guest-root.ext4"          # the guest's disk: busybox and Redis
HOST_BASE = IMAGES / "host-base.cpio"            # a lab host without Pollux
HOST_POLLUX = IMAGES / "host-pollux.cpio"        # the pollux binary and its libraries
HOST_INITRD = IMAGES / "host-initrd.cpio"        # the two above, concatenated
