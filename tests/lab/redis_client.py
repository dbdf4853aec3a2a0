"""A Redis client over one blocking TCP connection that remembers every acknowledged command.

One connection, never opened again, one command at a time: if the machine behind it is replaced by
its replica, the client must not notice. The journal is the evidence; check_* compare it with what
Redis holds.
"""
import re
import socket
import time
from collections import Counter
from dataclasses import dataclass

PORT = 6379
CONTROL_PORT = 9  # the guest's own command port, see guest/control


class RedisError(Exception):
    """Redis refused a command; the message is its own."""


class ConnectionLost(Exception):
    """The connection broke or gave no answer in time: what replication is there to prevent."""


@dataclass(frozen=True)
class Acknowledged:
    """One command whose reply has arrived. Times are time.monotonic() seconds."""
    command: tuple[str, ...]
    reply: object
    sent: float
    acked: float


class RedisClient:
    """RESP2 without pipelining. `timeout` is how long a single reply may take, failover included."""

    def __init__(self, host: str, port: int = PORT, timeout: float = 60):
        self.journal: list[Acknowledged] = []
        self.unanswered: tuple[str, ...] | None = None  # sent, and perhaps carried out
        self._socket = socket.create_connection((host, port), timeout=timeout)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = self._socket.makefile("rb")

    def __enter__(self) -> "RedisClient":
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self._reader.close()
        self._socket.close()

    def abort(self):
        """From another thread: a command under way gets no answer any more."""
        self._socket.shutdown(socket.SHUT_RDWR)

    def command(self, *words):
        """Sends one command, waits for its reply, puts both in the journal and returns the reply.

        Replies are str, int, None or lists of these. Raises RedisError or ConnectionLost.
        """
        command = tuple(str(word) for word in words)
        self.unanswered = command
        sent = time.monotonic()
        try:
            self._socket.sendall(encode(command))
            reply = read_reply(self._reader)
        except OSError as error:
            raise ConnectionLost(f"no answer to {' '.join(command)}: {error}") from None
        self.unanswered = None
        if isinstance(reply, RedisError):
            raise reply
        self.journal.append(Acknowledged(command, reply, sent, time.monotonic()))
        return reply

    def longest_pause(self) -> float:
        """The longest time in seconds between a command and its reply."""
        return max((entry.acked - entry.sent for entry in self.journal), default=0.0)


def encode(command: tuple[str, ...]) -> bytes:
    parts = [f"*{len(command)}\r\n".encode()]
    for word in command:
        data = word.encode(errors="surrogateescape")
        parts.append(b"$%d\r\n%s\r\n" % (len(data), data))
    return b"".join(parts)


def read_reply(reader):
    """One RESP2 reply; an error reply is returned as a RedisError, not raised."""
    line = reader.readline()
    if not line.endswith(b"\r\n"):
        raise ConnectionLost("the server closed the connection")
    kind, rest = line[:1], line[1:-2]
    if kind == b"+":
        return rest.decode(errors="surrogateescape")
    if kind == b"-":
        return RedisError(rest.decode(errors="surrogateescape"))
    if kind == b":":
        return int(rest)
    if kind == b"*":
        return None if int(rest) < 0 else [read_reply(reader) for _ in range(int(rest))]
    if kind != b"$":
        raise ConnectionLost(f"not a RESP reply: {line!r}")
    if int(rest) < 0:
        return None
    data = reader.read(int(rest) + 2)
    if len(data) != int(rest) + 2:
        raise ConnectionLost("the server closed the connection")
    return data[:-2].decode(errors="surrogateescape")


def wait_for_redis(host: str, timeout: float = 60, port: int = PORT):
    """Polls until Redis answers PING."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            with RedisClient(host, port, timeout=5) as client:
                client.command("PING")
                return
        except (OSError, ConnectionLost, RedisError) as error:
            if time.monotonic() > deadline:
                raise ConnectionLost(f"no Redis at {host}:{port} within {timeout:.0f} s: {error}") from None
            time.sleep(0.1)


def guest_control(host: str, command: str, timeout: float = 30) -> str:
    """Gives the guest a command (poweroff, sync or uptime) on its control port; returns the answer."""
    with socket.create_connection((host, CONTROL_PORT), timeout=timeout) as control:
        control.sendall(command.encode() + b"\n")
        return control.makefile("r").readline().strip()


def guest_uptime(host: str) -> float:
    """The seconds that the guest's clock has counted since its start."""
    answer = guest_control(host, "uptime")
    if not re.fullmatch(r"ok [0-9.]+", answer):
        raise RedisError(f"uptime: {answer or 'no answer'}")
    return float(answer.split()[1])


# --- the workload -------------------------------------------------------------------------------

class Workload:
    """Writes whose loss, repetition or reordering shows: a counter, and unique tokens in a list and a string."""

    def __init__(self, client: RedisClient, name: str = "work"):
        self.client, self.name, self.steps = client, name, 0

    def step(self):
        """One round: three acknowledged writes."""
        self.steps += 1
        token = f"{self.name}-{self.steps:06d}"
        self.client.command("INCR", f"{self.name}:counter")
        self.client.command("RPUSH", f"{self.name}:list", token)
        self.client.command("APPEND", f"{self.name}:string", token + ";")

    def run(self, go_on):
        """Rounds without a pause for as long as go_on() is true."""
        while go_on():
            self.step()


# --- the verifier -------------------------------------------------------------------------------

class Model:
    """What Redis must do with the writes that the lab uses: replies and contents."""

    def __init__(self):
        self.data: dict[str, str | list[str]] = {}

    def apply(self, command: tuple[str, ...]):
        """Carries out one write and returns the expected reply; KeyError if it is not one that we know."""
        name, *words = command
        return {"SET": self._set, "INCR": self._incr, "APPEND": self._append,
                "RPUSH": self._rpush, "DEL": self._del}[name.upper()](*words)

    def _set(self, key, value):
        self.data[key] = value
        return "OK"

    def _incr(self, key):
        self.data[key] = str(int(self.data.get(key, "0")) + 1)
        return int(self.data[key])

    def _append(self, key, value):
        self.data[key] = self.data.get(key, "") + value
        return len(self.data[key].encode(errors="surrogateescape"))

    def _rpush(self, key, *values):
        self.data.setdefault(key, []).extend(values)
        return len(self.data[key])

    def _del(self, *keys):
        return sum(self.data.pop(key, None) is not None for key in keys)


WRITES = {"SET", "INCR", "APPEND", "RPUSH", "DEL"}


def writes_of(journal: list[Acknowledged]) -> list[Acknowledged]:
    return [entry for entry in journal if entry.command[0].upper() in WRITES]


def check_replies(journal: list[Acknowledged]) -> list[str]:
    """Every reply must be the one that an unbroken Redis gives: no gap, no repeat, nothing lost.

    The keys must have been empty at the journal's beginning. Returns the problems found, one per line.
    """
    model, problems = Model(), []
    for number, entry in enumerate(writes_of(journal)):
        expected = model.apply(entry.command)
        if entry.reply != expected:
            problems.append(f"write {number} {' '.join(entry.command)}: reply {entry.reply}, expected {expected}")
    return problems


def check_data(journal: list[Acknowledged], client: RedisClient,
               unanswered: tuple[str, ...] | None = None) -> list[str]:
    """Redis must hold exactly what was acknowledged; an unanswered write may be there or not."""
    model = Model()
    for entry in writes_of(journal):
        model.apply(entry.command)
    allowed = [dict(model.data)]
    if unanswered and unanswered[0].upper() in WRITES:
        allowed[0] = {k: list(v) if isinstance(v, list) else v for k, v in model.data.items()}
        model.apply(unanswered)
        allowed.append(model.data)
    problems = []
    for key in sorted(set().union(*allowed)):
        is_list = any(isinstance(state.get(key), list) for state in allowed)
        found = client.command("LRANGE", key, 0, -1) if is_list else client.command("GET", key)
        if found not in [state.get(key, [] if is_list else None) for state in allowed]:
            problems.append(f"{key}: Redis holds {_short(found)}, acknowledged was {_short(allowed[0].get(key))}")
    return problems


def lost_from_data(journal: list[Acknowledged], client: RedisClient) -> set[int]:
    """The acknowledged writes that Redis does not show, as numbers in writes_of(journal).

    Counts what was added: INCR, RPUSH, APPEND. Of equal writes the last are taken for lost. A key that was ever SET
    or deleted is left out: what was there before cannot be told from what was lost. check_data judges it.
    """
    writes = list(enumerate(writes_of(journal)))
    overwritten = {entry.command[1] for _, entry in writes if entry.command[0].upper() == "SET"}
    overwritten |= {key for _, entry in writes if entry.command[0].upper() == "DEL" for key in entry.command[1:]}
    held, seen, lost = {}, Counter(), set()
    for number, entry in writes:
        name, key = entry.command[0].upper(), entry.command[1]
        if key in overwritten:
            continue
        if key not in held:
            held[key] = client.command("LRANGE", key, 0, -1) if name == "RPUSH" else client.command("GET", key)
        seen[entry.command] += 1
        if not _shows(held[key], name, entry.command[2:], seen[entry.command]):
            lost.add(number)
    return lost


def _shows(held: str | list[str] | None, name: str, values: tuple[str, ...], times: int) -> bool:
    """Whether what a key holds can come from so many writes of this kind."""
    if held is None:
        return False
    if name == "INCR":
        return held.isdigit() and int(held) >= times
    return all(held.count(value) >= times for value in values)


def _short(value) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:30]}...{text[-40:]} ({len(text)} characters)"
