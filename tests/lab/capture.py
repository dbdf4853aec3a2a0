"""What a host puts on the LAN: the frames that come in on its port of the bridge."""
import socket
import threading
import time
from dataclasses import dataclass

ETH_P_ALL = 3
PACKET_OUTGOING = 4    # to the host: not of interest
MAX_FRAME = 65536


@dataclass(frozen=True)
class Frame:
    """`at` is in time.monotonic() seconds."""
    at: float
    data: bytes

    @property
    def source(self) -> str:
        return ":".join(f"{byte:02x}" for byte in self.data[6:12])


class Capture(threading.Thread):
    """Records every frame that the host at this TAP sends, until stop()."""

    def __init__(self, tap: str):
        super().__init__(daemon=True)
        self.frames: list[Frame] = []
        self._stopping = threading.Event()
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self._socket.bind((tap, ETH_P_ALL))
        self._socket.settimeout(0.1)
        self.start()

    def run(self):
        while not self._stopping.is_set():
            try:
                data, address = self._socket.recvfrom(MAX_FRAME)
            except TimeoutError:
                continue
            except OSError:   # the TAP is gone
                break
            if address[2] != PACKET_OUTGOING:
                self.frames.append(Frame(time.monotonic(), data))

    def stop(self):
        self._stopping.set()
        self.join()
        self._socket.close()

    def sent_by(self, mac: str, since: float = 0.0) -> list[Frame]:
        """The frames with this source address, from that moment on."""
        return [frame for frame in list(self.frames) if frame.source == mac and frame.at >= since]
