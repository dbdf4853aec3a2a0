"""Builds the lab's images from Debian packages, installed or unpacked by `./run setup`, as an ordinary user.

Each image is rebuilt only when the content of one of its inputs has changed: the digest of all
inputs is kept beside the image. Archives are not compressed: unpacking gzip costs an emulated
host seconds, copying costs it nothing.
"""
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import paths

GUEST_ROOT_MIB = 128
GUEST_ROOT_UUID = "706f6c6c-7578-4775-8573-740000000001"

HOST_MODULES = ["virtio_pci", "virtio_net", "virtio_blk", "virtio_console", "tun", "bridge", "kvm-amd", "kvm-intel"]
GUEST_MODULES = ["virtio_mmio", "virtio_blk", "virtio_net", "virtio_console", "virtio-rng"]


class ImageError(Exception):
    """An image cannot be built; the message says what to install or to build."""


# --- inputs -------------------------------------------------------------------------------------

def required(path: str, package: str) -> Path:
    if not Path(path).exists():
        raise ImageError(f"{path} is missing: install the Debian package {package}")
    return Path(path)


def newest_kernel() -> tuple[Path, str]:
    """The newest cloud kernel that is installed or, if none is, unpacked: where its /boot and /lib are, and its version,
    such as 6.1.0-56-cloud-amd64."""
    def numbers(version):
        return [int(part) for part in re.findall(r"\d+", version)]
    for roots in ([Path("/")], paths.PACKAGES.glob("linux-image-*")):
        kernels = [(root, kernel.name.removeprefix("vmlinuz-"))
                   for root in roots for kernel in root.glob("boot/vmlinuz-*-cloud-amd64")]
        kernels = [(root, version) for root, version in kernels if (root / "lib/modules" / version / "modules.dep").exists()]
        if kernels:
            return max(kernels, key=lambda kernel: numbers(kernel[1]))
    raise ImageError(f"no cloud kernel in /boot or {paths.PACKAGES}: run ./run setup")


class Modules:
    """The modules of one kernel, with what modules.dep says about their dependencies."""

    def __init__(self, root: Path, version: str):
        self.folder = root / "lib/modules" / version
        self.dependencies = {}
        for line in (self.folder / "modules.dep").read_text().splitlines():
            module, _, needed = line.partition(":")
            self.dependencies[module] = needed.split()
        self.by_name = {Path(m).name.split(".")[0]: m for m in self.dependencies}
        self.builtin = (self.folder / "modules.builtin").read_text()

    def load_order(self, name: str) -> list[Path]:
        """The files to insmod, in this order, to have `name`; empty if the kernel contains it."""
        if name not in self.by_name:
            if re.search(rf"/{re.escape(name)}\.ko$", self.builtin, re.M):
                return []
            raise ImageError(f"the kernel has no module {name} in {self.folder}")
        module = self.by_name[name]
        # modules.dep lists the nearest dependency first, so the load order is its reverse.
        return [self.folder / m for m in [*reversed(self.dependencies[module]), module]]


def shared_libraries(program: Path) -> list[Path]:
    """Every library that the dynamic linker would load for `program`, and the linker itself."""
    output = subprocess.run(["ldd", program], capture_output=True, text=True)
    if "not a dynamic executable" in output.stdout + output.stderr:
        return []
    if output.returncode or "not found" in output.stdout:
        raise ImageError(f"ldd {program}: {(output.stdout + output.stderr).strip()}")
    return [Path(p) for p in re.findall(r"(/\S+) \(0x", output.stdout)]


def digest_of(files: list[Path], *words: str) -> str:
    total = hashlib.sha256()
    for path in files:
        total.update(f"{path.name}\0".encode())
        total.update(hashlib.sha256(path.read_bytes()).digest())
    total.update("\0".join(words).encode())
    return total.hexdigest()


# --- building -----------------------------------------------------------------------------------

class Tree:
    """A staging folder that becomes an archive or a file system."""

    def __init__(self, folder: Path):
        self.folder = folder

    def add(self, source: Path, target: str, mode: int = 0o755):
        path = self.folder / target.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, path)  # follows links: the image holds plain files
        path.chmod(mode)

    def write(self, target: str, text: str):
        path = self.folder / target.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def folders(self, *names: str):
        for name in names:
            (self.folder / name.lstrip("/")).mkdir(parents=True, exist_ok=True)

    def link(self, target: str, name: str):
        path = self.folder / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.symlink_to(target)

    def program(self, source: Path, target: str):
        """A program with its libraries, at the paths where the linker looks for them."""
        self.add(source, target)
        for library in shared_libraries(source):
            self.add(library, str(library))

    def busybox(self, links: bool):
        self.add(required("/bin/busybox", "busybox-static"), "/bin/busybox")
        self.link("busybox", "/bin/sh")
        if links:
            names = subprocess.run(["/bin/busybox", "--list"], capture_output=True, text=True, check=True)
            for name in names.stdout.split():
                self.link("busybox", f"/bin/{name}")

    def to_cpio(self, image: Path):
        names = sorted(str(p.relative_to(self.folder)) for p in self.folder.rglob("*"))
        with open(image, "wb") as out:
            run(["cpio", "--create", "--null", "--format=newc", "--owner=0:0", "--reproducible", "--quiet"],
                cwd=self.folder, input="\0".join(names).encode(), stdout=out)

    def to_ext4(self, image: Path, mib: int, uuid: str):
        # Lazy initialization would have the guest's kernel write to its disk for minutes after boot.
        options = f"root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0,hash_seed={uuid}"
        command = ["mke2fs", "-q", "-t", "ext4", "-L", "guest-root", "-U", uuid, "-E", options,
                   "-m", "0", "-b", "4096", "-J", "size=8", "-d", self.folder, image, f"{mib}M"]
        if os.geteuid() != 0:  # mke2fs keeps the owners that it sees: let them be root's
            command = ["unshare", "--user", "--map-root-user", *command]
        run(command, stdout=subprocess.DEVNULL,
            env={**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"})


def run(command, **options):
    done = subprocess.run(command, stderr=subprocess.PIPE, **options)
    if done.returncode:
        raise ImageError(f"{command[0]} failed: {done.stderr.decode(errors='replace').strip()}")


class Builder:
    """Builds what is out of date. `say` is called with one line per image that is built."""

    def __init__(self, say=print):
        self.say = say
        root, self.kernel_version = newest_kernel()
        self.kernel = root / f"boot/vmlinuz-{self.kernel_version}"
        self.modules = Modules(root, self.kernel_version)

    def all(self):
        paths.IMAGES.mkdir(parents=True, exist_ok=True)
        with open(paths.IMAGES / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two test runs may start at once
            self.kernels()
            self.guest_initrd()
            self.guest_shell_initrd()
            self.guest_root()
            self.host_base()
            self.host_pollux()
            self.host_initrd()

    def image(self, path: Path, inputs: list[Path], make, *words: str):
        """Calls make(temporary path) unless `path` was made from the same inputs."""
        digest = digest_of([*inputs, paths.HERE / "images.py"], *words)
        stamp = path.with_name(f".{path.name}.inputs")
        if path.exists() and stamp.exists() and stamp.read_text() == digest:
            return
        with tempfile.TemporaryDirectory(dir=paths.IMAGES, prefix=".build-") as folder:
            temporary = Path(folder, path.name)
            make(temporary)
            size = temporary.stat().st_size
            stamp.unlink(missing_ok=True)
            temporary.replace(path)  # a running lab keeps the old file
        stamp.write_text(digest)
        self.say(f"built {path} ({size / 2**20:.1f} MiB)")

    def tree_image(self, path: Path, inputs: list[Path], fill, finish=Tree.to_cpio):
        def make(temporary):
            with tempfile.TemporaryDirectory(dir=paths.IMAGES, prefix=".tree-") as folder:
                tree = Tree(Path(folder))
                fill(tree)
                finish(tree, temporary)
        self.image(path, inputs, make, self.kernel_version)

    # --- the images ---

    def kernels(self):
        self.image(paths.KERNEL, [self.kernel], lambda out: shutil.copyfile(self.kernel, out))
        self.image(paths.KERNEL_ELF, [self.kernel],
                   lambda out: out.write_bytes(decompress_kernel(self.kernel.read_bytes())))

    def guest_initrd(self):
        here = paths.HERE / "guest"
        files = [f for name in GUEST_MODULES for f in self.modules.load_order(name)]

        def fill(tree):
            tree.busybox(links=False)
            tree.add(here / "init", "/init")
            tree.add(here / "test-io", "/test-io")
            tree.folders("/proc", "/sys", "/dev", "/disk")
            done = []
            for name in GUEST_MODULES:
                order = [f for f in self.modules.load_order(name) if f not in done]
                done += order
                for file in order:
                    tree.add(file, f"/lib/modules/{file.name}", 0o644)
                tree.write(f"/lib/modules/{name}.order", "".join(f"{f.name}\n" for f in order))
        inputs = [here / "init", here / "test-io", Path("/bin/busybox"), *files]
        self.tree_image(paths.GUEST_INITRD, inputs, fill)

    def guest_shell_initrd(self):
        here = paths.HERE / "guest"

        def fill(tree):
            tree.busybox(links=False)
            tree.add(here / "shell-init", "/init")
            tree.add(here / "shell-functions", "/functions", 0o644)
            tree.folders("/proc", "/sys", "/dev")
        inputs = [here / "shell-init", here / "shell-functions", Path("/bin/busybox")]
        self.tree_image(paths.GUEST_SHELL_INITRD, inputs, fill)

    def guest_root(self):
        here = paths.HERE / "guest"
        redis = required("/usr/bin/redis-check-rdb", "redis-tools")  # Redis, whatever its name; under this one a server

        def fill(tree):
            tree.busybox(links=True)
            tree.program(redis, "/usr/bin/redis-server")
            tree.add(here / "root-init", "/sbin/init")
            tree.add(here / "control", "/sbin/control")
            tree.add(here / "redis.conf", "/etc/redis.conf", 0o644)
            tree.folders("/proc", "/sys", "/dev", "/tmp", "/run", "/var/lib/redis")

        def finish(tree, image):
            tree.to_ext4(image, GUEST_ROOT_MIB, GUEST_ROOT_UUID)
        inputs = [here / "root-init", here / "control", here / "redis.conf", Path("/bin/busybox"),
                  redis, *shared_libraries(redis)]
        self.tree_image(paths.GUEST_ROOT, inputs, fill, finish)

    def host_base(self):
        here = paths.HERE / "host"
        order = list(dict.fromkeys(f for name in HOST_MODULES for f in self.modules.load_order(name)))

        def fill(tree):
            tree.busybox(links=True)
            tree.add(here / "init", "/init")
            tree.add(here / "run.cgi", "/srv/cgi-bin/run")
            tree.folders("/proc", "/sys", "/dev", "/tmp", "/run", "/root")
            for file in order:
                tree.add(file, f"/lib/modules/{file.name}", 0o644)
            tree.write("/lib/modules/load-order", "".join(f"/lib/modules/{f.name}\n" for f in order))
            tree.add(paths.KERNEL, "/guest/vmlinuz", 0o644)
            tree.add(paths.GUEST_INITRD, "/guest/initrd.cpio", 0o644)
            tree.add(paths.GUEST_SHELL_INITRD, "/guest/shell-initrd.cpio", 0o644)
        inputs = [here / "init", here / "run.cgi", Path("/bin/busybox"), *order, paths.KERNEL,
                  paths.GUEST_INITRD, paths.GUEST_SHELL_INITRD]
        self.tree_image(paths.HOST_BASE, inputs, fill)

    def host_pollux(self):
        binary = paths.pollux_binary()
        if not binary.exists():
            self.say(f"note: {binary} does not exist: hosts will have no pollux (build it, or set POLLUX_BIN)")
            paths.HOST_POLLUX.unlink(missing_ok=True)
            return

        def fill(tree):
            tree.program(binary, "/usr/bin/pollux")
            if shutil.which("strip"):  # debug information is most of the file
                run(["strip", tree.folder / "usr/bin/pollux"])
        self.tree_image(paths.HOST_POLLUX, [binary, *shared_libraries(binary)], fill)

    def host_initrd(self):
        parts = [p for p in (paths.HOST_BASE, paths.HOST_POLLUX) if p.exists()]
        stamps = [p.with_name(f".{p.name}.inputs") for p in parts]

        def make(out):
            with open(out, "wb") as joined:  # the kernel unpacks concatenated archives in order
                for part in parts:
                    with open(part, "rb") as source:
                        shutil.copyfileobj(source, joined)
        self.image(paths.HOST_INITRD, stamps, make)


def decompress_kernel(image: bytes) -> bytes:
    """The ELF vmlinux inside a bzImage (Linux boot protocol: payload_offset, payload_length).

    QEMU starts it as it is (PVH), which spares an emulated host a second of decompression.
    """
    setup_sectors = image[0x1F1] or 4
    offset = int.from_bytes(image[0x248:0x24C], "little")
    length = int.from_bytes(image[0x24C:0x250], "little")
    payload = image[(setup_sectors + 1) * 512 + offset:][:length]
    tools = {b"\x02\x21\x4c\x18": (["lz4", "-dc"], "lz4"), b"\x1f\x8b": (["gzip", "-dc"], "gzip"),
             b"\xfd7zXZ\0": (["xz", "-dc"], "xz-utils"), b"\x28\xb5\x2f\xfd": (["zstd", "-dc"], "zstd")}
    for magic, (command, package) in tools.items():
        if payload.startswith(magic):
            required(shutil.which(command[0]) or f"/usr/bin/{command[0]}", package)
            # The payload ends with its uncompressed size: no part of the compressed stream.
            done = subprocess.run(command, input=payload[:-4], capture_output=True)
            if not done.stdout.startswith(b"\x7fELF"):
                raise ImageError(f"{command[0]}: no ELF kernel in the bzImage: {done.stderr.decode()}")
            return done.stdout
    raise ImageError(f"unknown compression of the kernel: {payload[:6].hex()}")
