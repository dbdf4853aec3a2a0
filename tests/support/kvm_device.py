"""Whether /dev/kvm can be used here, for tests that need it."""
import fcntl
import os
import unittest

KVM_GET_API_VERSION = 0xAE00  # linux/kvm.h
API_VERSION = 12


def why_not() -> str:
    """Empty when it can be used. That it opens is not enough: a sandbox may have put another file there."""
    try:
        device = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return f"/dev/kvm: {error.strerror}"
    try:
        return "" if fcntl.ioctl(device, KVM_GET_API_VERSION) == API_VERSION else "/dev/kvm: not KVM's API 12"
    except OSError as error:
        return f"/dev/kvm: {error.strerror}"
    finally:
        os.close(device)


needs_kvm = unittest.skipIf(why_not(), why_not())
