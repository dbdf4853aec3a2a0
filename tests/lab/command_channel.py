"""Runs commands on a lab host: HTTP to busybox httpd there, which runs host/run.cgi.

Why HTTP and CGI: httpd starts one process per request, so that long commands run side by side;
bodies are binary in both directions; nothing but busybox is needed on the host. It goes over a
second network card with QEMU's user-mode network, so a test may cut the LAN and still give commands.
"""
import base64
import re
import secrets
import socket
import time

MAX_QUERY = 6000  # busybox httpd reads a request line of at most 8192 bytes


class HostDied(Exception):
    """The connection ended before the command did: the host has lost its power or has crashed."""


class CommandTimeout(Exception):
    """The command did not end in time; `output` holds what it wrote until then."""

    def __init__(self, message: str, output: bytes):
        super().__init__(message)
        self.output = output


class Command:
    """One running command. Iterate over it for its output; afterwards `code` is its exit code."""

    def __init__(self, port: int, script: str, stdin: bytes = b"", timeout: float = 60):
        self.script = script
        self.deadline = time.monotonic() + timeout
        self.token = secrets.token_hex(8).encode()
        self.pid = None   # also the process group on the host
        self.code = None
        self._rest = b""
        query = self.token.decode() + "." + base64.b64encode(script.encode()).decode()
        if len(query) > MAX_QUERY:
            raise ValueError(f"command of {len(script)} bytes is too long: put it in a file with put()")
        self._request = f"POST /cgi-bin/run?{query} HTTP/1.0\r\nContent-Length: {len(stdin)}\r\n\r\n".encode() + stdin
        self._port, self._timeout = port, timeout

    def _send(self):
        try:
            self.socket = socket.create_connection(("127.0.0.1", self._port), timeout=self._timeout)
            self.socket.sendall(self._request)
        except OSError as error:  # nobody listens, or QEMU has gone
            raise HostDied(f"cannot give a command: {error}") from None

    def __iter__(self):
        """Yields pieces of the output as they come. Raises HostDied or CommandTimeout."""
        self._send()
        try:
            yield from self._output()
        finally:
            self.socket.close()

    def _output(self):
        self.pid = int(self._read_until(rb"pid (\d+)\n").group(1))
        end = re.compile(self.token + rb" exit (\d+)\n")
        while not (found := end.search(self._rest)):
            cut = self._safe_length()
            if cut:
                yield self._rest[:cut]
                self._rest = self._rest[cut:]
            self._rest += self._receive()
        if found.start():
            yield self._rest[:found.start()]
        self.code = int(found.group(1))

    def _safe_length(self) -> int:
        """How much of the output cannot be the beginning of the end mark."""
        mark = self.token + b" exit "
        longest = len(mark) + len("255\n")
        for start in range(max(0, len(self._rest) - longest), len(self._rest)):
            if mark.startswith(self._rest[start:][:len(mark)]):
                return start
        return len(self._rest)

    def _read_until(self, pattern: bytes):
        while not (found := re.search(pattern, self._rest)):
            self._rest += self._receive()
        self._rest = self._rest[found.end():]
        return found

    def _receive(self) -> bytes:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise CommandTimeout(f"no end in time: {self.script}", self._rest)
        self.socket.settimeout(left)
        try:
            data = self.socket.recv(65536)
        except TimeoutError:
            raise CommandTimeout(f"no end in time: {self.script}", self._rest) from None
        except OSError as error:
            raise HostDied(f"{self.script}: {error}") from None
        if not data:
            raise HostDied(f"the host went away during: {self.script}")
        return data
