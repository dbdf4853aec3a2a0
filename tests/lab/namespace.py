"""Puts this process into a user and network namespace of its own, where it may make bridges and TAPs.

No root is needed outside; nothing that is done here can touch the machine's real network.
"""
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys

MARK = "POLLUX_LAB_NAMESPACE"
PR_SET_PDEATHSIG = 1
libc = ctypes.CDLL(None, use_errno=True)


class NamespaceError(Exception):
    """The namespace or its network cannot be made; the message says why."""


def enter():
    """Starts this program again inside the namespace; returns at once if it already is inside."""
    if os.environ.get(MARK):
        return
    unshare = shutil.which("unshare")
    if not unshare:
        raise NamespaceError("unshare is missing: install the Debian package util-linux")
    ways = [["--user", "--map-root-user", "--net"]]
    if os.geteuid() == 0:  # root stays root, so that it can still write to other users' folders
        ways.insert(0, ["--net"])
    working = [way for way in ways if not subprocess.run([unshare, *way, "true"], capture_output=True).returncode]
    if not working:
        raise NamespaceError("no user namespaces here: set sysctl kernel.unprivileged_userns_clone=1, or be root")
    os.environ[MARK] = "1"
    sys.stdout.flush()
    os.execv(unshare, [unshare, *working[0], sys.executable, *sys.orig_argv[1:]])


def join_command(pid: int) -> list[str]:
    """The beginning of a command that runs a program inside the namespace of process `pid`."""
    same_user = os.readlink(f"/proc/{pid}/ns/user") == os.readlink("/proc/self/ns/user")
    return ["nsenter", "-t", str(pid), "--net", *([] if same_user else ["--user", "--preserve-credentials"])]


def ip(*words: str):
    """Runs ip(8) with these words."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    done = subprocess.run(["ip", *words], capture_output=True, text=True, env={**os.environ, "PATH": path})
    if done.returncode:
        raise NamespaceError(f"ip {' '.join(words)}: {done.stderr.strip()}")


def has_interface(name: str) -> bool:
    """/sys shows the network of the process that mounted it: not ours. So ask the kernel."""
    return name in (found for _, found in socket.if_nameindex())


def die_with_parent():
    """For subprocess's preexec_fn: the child is killed when the thread that started it ends.

    The kernel watches the thread and not the process: start children from the main thread.
    """
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
