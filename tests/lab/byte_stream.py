"""A long stream of bytes over one TCP connection, to the guest's echo port and back: what returns must be what was sent,
byte for byte, whatever happens to the hosts meanwhile."""
import random
import socket
import threading
import time

ECHO_PORT = 7          # see guest/init
PIECE = 2048           # bytes under way at a time: the guest is slow
PAUSE = 0.02           # seconds between two pieces: others want the guest, too


class ByteStream(threading.Thread):
    """On a thread of its own, until told to stop. `problem` says what went wrong, if anything did."""

    def __init__(self, host: str, seed: int, timeout: float = 60):
        super().__init__(daemon=True)
        self._bytes = random.Random(seed)
        self._socket = socket.create_connection((host, ECHO_PORT), timeout=timeout)
        self._stopping = threading.Event()
        self.echoed = 0
        self.problem: str | None = None

    def run(self):
        try:
            while not self._stopping.is_set():
                self._exchange(self._bytes.randbytes(PIECE))
                time.sleep(PAUSE)
        except OSError as error:
            self.problem = f"the connection broke after {self.echoed} bytes: {error}"
        finally:
            self._socket.close()

    def _exchange(self, piece: bytes):
        self._socket.sendall(piece)
        back = b""
        while len(back) < len(piece) and self.problem is None:
            more = self._socket.recv(len(piece) - len(back))
            if not more:
                raise OSError("closed by the guest")
            back += more
        if back != piece:
            at = next(i for i, (sent, got) in enumerate(zip(piece, back)) if sent != got)
            self.problem = f"byte {self.echoed + at} came back as {back[at]}, sent was {piece[at]}"
            self._stopping.set()
            return
        self.echoed += len(piece)

    def stop(self):
        """After the exchange under way."""
        self._stopping.set()
        self.join(90)
        if self.is_alive() and self.problem is None:
            self.problem = f"no answer after {self.echoed} bytes"
