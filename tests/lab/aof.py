"""Reads Redis's append-only file out of a guest's raw disk image, and holds it against a client's journal.

Redis 7 keeps several files in appendonlydir: a manifest that names them, a base (RDB) and
increments (RESP commands). The lab's Redis starts empty and never rewrites, so the base has no
keys and the increments hold every write since the disk was made.
"""
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from redis_client import Acknowledged, Model, writes_of

FOLDER_IN_GUEST = "/var/lib/redis/appendonlydir"


class AofError(Exception):
    """The AOF cannot be read, or is damaged before its end."""


@dataclass
class Aof:
    commands: list[tuple[str, ...]]  # in the order written, without SELECT, MULTI and EXEC
    torn_bytes: int                  # an incomplete last command: legal after a power failure


def extract(image: Path, work: Path) -> Path:
    """Copies appendonlydir out of an ext4 image into the folder `work`, without root. The image is not changed.

    After a power failure the last writes are in the journal only: it is replayed on a copy.
    """
    work.mkdir(parents=True, exist_ok=True)
    copy = work / "disk.raw"
    _run("cp", "--sparse=always", "--reflink=auto", image, copy)
    _run("e2fsck", "-p", "-E", "journal_only", copy, good=(0, 1))
    folder = work / "appendonlydir"
    shutil.rmtree(folder, ignore_errors=True)
    _run("debugfs", "-R", f"rdump {FOLDER_IN_GUEST} {work}", copy)
    copy.unlink()
    if not folder.exists():
        raise AofError(f"{image} has no {FOLDER_IN_GUEST}: was Redis started on this disk?")
    return folder


def _run(*command, good=(0,)):
    path = "/usr/sbin:/sbin:/usr/bin:/bin"
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, env={"PATH": path})
    if done.returncode not in good:
        raise AofError(f"{command[0]} failed: {done.stderr.strip() or done.stdout.strip()}")


def read(folder: Path) -> Aof:
    """Reads the files that the manifest in appendonlydir names."""
    manifests = list(folder.glob("*.manifest"))
    if len(manifests) != 1:
        raise AofError(f"{folder}: expected one manifest, found {len(manifests)}")
    data = b""
    for line in manifests[0].read_text().splitlines():
        words = line.split()  # file NAME seq N type b|i|h
        fields = dict(zip(words[::2], words[1::2]))
        if fields["type"] == "b":
            _require_no_keys((folder / fields["file"]).read_bytes())
        elif fields["type"] == "i":
            data += (folder / fields["file"]).read_bytes()
    commands, torn = parse(data)
    noise = {"SELECT", "MULTI", "EXEC"}
    return Aof([c for c in commands if c[0].upper() not in noise], torn)


def parse(data: bytes) -> tuple[list[tuple[str, ...]], int]:
    """Splits RESP commands; returns them and the length of an incomplete one at the end."""
    commands, at = [], 0
    while at < len(data):
        if data[at:at + 1] == b"#":  # an annotation, such as a time stamp
            end = data.find(b"\r\n", at)
            if end < 0:
                break
            at = end + 2
            continue
        command, end = _parse_command(data, at)
        if command is None:
            break
        commands.append(command)
        at = end
    return commands, len(data) - at


def _parse_command(data: bytes, at: int):
    """One command at `at`, and where it ends; (None, at) if the data ends within it."""
    start = at
    count, at = _parse_number(data, at, b"*")
    words = []
    for _ in range(count or 0):
        length, at = _parse_number(data, at, b"$")
        if length is None or at + length + 2 > len(data):
            return None, start
        if data[at + length:at + length + 2] != b"\r\n":
            raise AofError(f"damaged at byte {at + length}: no end of line after a word")
        words.append(data[at:at + length].decode(errors="surrogateescape"))
        at += length + 2
    return (tuple(words), at) if words else (None, start)


def _parse_number(data: bytes, at: int, mark: bytes):
    """The number in a line such as *3; (None, at) if the data ends within the line."""
    if at < len(data) and data[at:at + 1] != mark:
        raise AofError(f"damaged at byte {at}: {data[at:at + 20]!r} where {mark.decode()} should be")
    end = data.find(b"\r\n", at)
    if end < 0:
        return None, at
    return int(data[at + 1:end]), end + 2


def _require_no_keys(rdb: bytes):
    """An RDB file without keys: magic, AUX fields (0xFA), end (0xFF)."""
    at = 9  # "REDIS" and four digits
    while rdb[at] == 0xFA:
        at = _skip_string(rdb, _skip_string(rdb, at + 1))
    if rdb[at] != 0xFF:
        raise AofError("the AOF's base holds keys: Redis has rewritten it, which the lab's redis.conf forbids")


def _skip_string(rdb: bytes, at: int) -> int:
    """Where the RDB string at `at` ends: a length in 6 or 14 bits, or an integer of 1, 2 or 4 bytes."""
    kind, low = rdb[at] >> 6, rdb[at] & 0x3F
    if kind == 0:
        return at + 1 + low
    if kind == 1:
        return at + 2 + (low << 8 | rdb[at + 1])
    if kind == 3 and low < 3:
        return at + 1 + (1 << low)
    raise AofError(f"unexpected RDB string at byte {at}")


def lost(aof: Aof, journal: list[Acknowledged]) -> set[int]:
    """The acknowledged writes that are not in the AOF at all, as numbers in writes_of(journal).

    Of equal writes the last are taken for lost.
    """
    left, missing = Counter(aof.commands), set()
    for number, entry in enumerate(writes_of(journal)):
        left[entry.command] -= 1
        if left[entry.command] < 0:
            missing.add(number)
    return missing


def check(aof: Aof, journal: list[Acknowledged], unanswered: tuple[str, ...] | None = None,
          *, only_client: bool = True) -> list[str]:
    """Every acknowledged write must be in the AOF, in order, at a place where it gives the same reply.

    With only_client, the AOF must hold nothing else but, at most once, the unanswered write.
    Returns the problems found, one per line.
    """
    model, problems, extra = Model(), [], []
    wanted = iter(writes_of(journal))
    next_wanted = next(wanted, None)
    for command in aof.commands:
        try:
            reply = model.apply(command)
        except KeyError:
            raise AofError(f"the model does not know {' '.join(command)}: teach it in redis_client.py") from None
        if next_wanted and command == next_wanted.command and reply == next_wanted.reply:
            next_wanted = next(wanted, None)
        else:
            extra.append(command)
    if next_wanted:
        missing = len(lost(aof, journal))
        what = f"{missing} acknowledged writes are not in the AOF" if missing else "the AOF's order is wrong"
        problems.append(f"{what}; the first that is not where it belongs is "
                        f"{' '.join(next_wanted.command)} -> {next_wanted.reply}")
    if extra and only_client and extra != [unanswered]:
        problems.append(f"{len(extra)} writes in the AOF were never asked for or are out of place, "
                        f"the first is {' '.join(extra[0])}")
    return problems
