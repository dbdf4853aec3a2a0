"""A client of the kv_server guest (tests/guests/lockstep/kv_protocol.h): one request under way at a time, repeated until it
is answered. It remembers what it was told, and checks every answer against that."""
import random
import socket
import struct
import threading
import time

PORT = 7000
MAGIC = 0x31564B50
PUT, GET, INCREMENT = 1, 2, 3
OK, MISSING = 0, 1
REQUEST = struct.Struct("<IBBHQQ32s128s")
RESPONSE = struct.Struct("<IBBHQQ128s")
RESEND_AFTER = 0.1   # seconds


class Unanswered(Exception):
    """No answer within the time that a failover may take."""


class KvClient:
    def __init__(self, server: str, timeout: float = 30):
        self.server, self.timeout = server, timeout
        self.number, self.sequence = random.getrandbits(63), 0
        self.sent = 0   # datagrams, repeated ones too
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.connect((server, PORT))
        self._socket.settimeout(RESEND_AFTER)

    def close(self):
        self._socket.close()

    def request(self, operation: int, key: bytes, value: bytes = b"") -> tuple[int, bytes]:
        """The response's status and value."""
        self.sequence += 1
        datagram = REQUEST.pack(MAGIC, operation, len(key), len(value), self.number, self.sequence, key, value)
        deadline = time.monotonic() + self.timeout
        while time.monotonic() < deadline:
            try:
                self._socket.send(datagram)
                self.sent += 1
                while True:
                    magic, status, _, size, client, sequence, value = RESPONSE.unpack(self._socket.recv(65536))
                    if (magic, client, sequence) == (MAGIC, self.number, self.sequence):
                        return status, value[:size]
            except (TimeoutError, ConnectionRefusedError, OSError, struct.error):
                continue   # lost, or an old answer: asked again
        raise Unanswered(f"request {self.sequence} was not answered within {self.timeout:.0f} s")


class Workload(threading.Thread):
    """Counts, writes and reads back under keys of its own, until told to stop. `contradictions` says what was wrong."""
    KEYS = 4

    def __init__(self, server: str, name: str):
        super().__init__(daemon=True)
        self.client, self.name = KvClient(server), name
        self.acknowledged, self.count, self.held = 0, 0, {}
        self.contradictions: list[str] = []
        self.longest = 0.0   # seconds between two answers
        self._stopping = threading.Event()

    def run(self):
        last = time.monotonic()
        try:
            while not self._stopping.is_set() and not self.contradictions:
                self.step()
                now = time.monotonic()
                self.longest = max(self.longest, now - last)
                last = now
        except Unanswered as error:
            self.contradictions.append(str(error))

    def step(self):
        key = f"{self.name}-{self.acknowledged % self.KEYS}".encode()
        value = f"{self.name}:{self.acknowledged}".encode()
        self.expect("count", self.client.request(INCREMENT, f"{self.name}-count".encode()),
                    (OK, struct.pack("<Q", self.count + 1)))
        self.count += 1
        self.expect("put", self.client.request(PUT, key, value), (OK, b""))
        self.held[key] = value
        self.acknowledged += 2

    def expect(self, what: str, found, expected):
        if found != expected:
            self.contradictions.append(f"{self.name}: {what}: the answer is {found}, not {expected}")

    def stop_and_verify(self):
        """Everything that was ever acknowledged must still be there."""
        self._stopping.set()
        self.join(60)
        if not self.contradictions:
            self.verify()
        self.client.close()

    def verify(self):
        self.expect("count", self.client.request(INCREMENT, f"{self.name}-count".encode()),
                    (OK, struct.pack("<Q", self.count + 1)))
        for key, value in self.held.items():
            self.expect(key.decode(), self.client.request(GET, key), (OK, value))
