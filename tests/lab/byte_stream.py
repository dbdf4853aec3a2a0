"""A long stream of bytes over one TCP connection, to the guest's echo port and back: what returns must be what was sent,
byte for byte, whatever happens to the hosts meanwhile. The sender does not wait for what comes back as long as less than a
window is under way, so that a host that dies leaves a window to be sent again in each direction."""
import random
import socket
import threading
import time

ECHO_PORT = 7          # see guest/init
WINDOW = 24 << 10      # bytes under way at most: more than TCP sends before the first acknowledgement
PIECE = 2048           # that are sent at a time
PAUSE = 0.01           # seconds between two pieces: the guest is slow, and others want it, too


class ByteStream:
    """On two threads, until told to stop. `problem` says what went wrong, if anything did."""

    def __init__(self, host: str, seed: int, port: int = ECHO_PORT, timeout: float = 60):
        self._seed = seed
        self._socket = socket.create_connection((host, port), timeout=timeout)
        self._changed = threading.Condition()  # guards all below
        self._stopping = False
        self._sent = 0
        self.echoed = 0
        self.windows = 0  # how often the sender had to wait, because a whole window was under way
        self.problem: str | None = None
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._send, self._check)]

    def start(self):
        for thread in self._threads:
            thread.start()

    def _send(self):
        generator = random.Random(self._seed)
        try:
            while self._may_send():
                self._socket.sendall(generator.randbytes(PIECE))
                with self._changed:
                    self._sent += PIECE
                time.sleep(PAUSE)
            self._socket.shutdown(socket.SHUT_WR)  # which the guest answers when it has echoed everything
        except OSError as error:
            self._fail(f"the connection broke with {self._sent} bytes sent: {error}")

    def _may_send(self) -> bool:
        """Waits until there is room in the window; False: it is time to end."""
        with self._changed:
            if self._sent - self.echoed > WINDOW - PIECE:
                self.windows += 1
            self._changed.wait_for(lambda: self._stopping or self._sent - self.echoed <= WINDOW - PIECE)
            return not self._stopping

    def _check(self):
        """Compares with the same bytes, made once more: whatever the sender did with its own."""
        generator, expected = random.Random(self._seed), b""
        try:
            while got := self._socket.recv(1 << 16):
                while len(expected) < len(got):
                    expected += generator.randbytes(PIECE)
                if got != expected[:len(got)]:
                    at = next(i for i, (back, sent) in enumerate(zip(got, expected)) if back != sent)
                    return self._fail(f"byte {self.echoed + at} came back as {got[at]}, sent was {expected[at]}")
                expected = expected[len(got):]
                with self._changed:
                    self.echoed += len(got)
                    self._changed.notify_all()
            with self._changed:
                complete = self._stopping and self.echoed == self._sent
            if not complete:
                self._fail(f"closed by the guest when {self.echoed} bytes of {self._sent} had come back")
        except OSError as error:
            self._fail(f"the connection broke after {self.echoed} bytes: {error}")

    def _fail(self, problem: str):
        with self._changed:
            self.problem = self.problem or problem
            self._stopping = True
            self._changed.notify_all()

    def stop(self):
        """When all that is under way has come back."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(90)
            if thread.is_alive():
                self._fail(f"of {self._sent} bytes {self.echoed} had come back, and no more did")
        self._socket.close()
