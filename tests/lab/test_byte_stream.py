#!/usr/bin/python3
"""The byte stream itself, against servers on loopback: what is wrong must be found."""
import socket
import sys
import threading
import time
import unittest

sys.dont_write_bytecode = True

from byte_stream import WINDOW, ByteStream


class Echo(threading.Thread):
    """Sends back what `change` makes of each piece: none of it, to close; the stream's first `held` bytes wait until told."""

    def __init__(self, change=lambda piece, at: piece):
        super().__init__(daemon=True)
        self.change, self.go_on = change, threading.Event()
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        self.received = 0
        self.start()

    def run(self):
        connection, _ = self.server.accept()
        with connection, self.server:
            while piece := connection.recv(1 << 16):
                answer = self.change(piece, self.received)
                self.received += len(piece)
                self.go_on.wait()
                if not answer:
                    return
                connection.sendall(answer)


class Stream(unittest.TestCase):
    def stream(self, echo: Echo) -> ByteStream:
        stream = ByteStream("127.0.0.1", 7, port=echo.port, timeout=10)
        stream.start()
        return stream

    def wait_until(self, condition):
        deadline = time.monotonic() + 30
        while not condition():
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.01)

    def test_everything_comes_back_and_a_window_is_under_way(self):
        echo = Echo()
        stream = self.stream(echo)
        self.wait_until(lambda: stream.windows > 0)  # nothing has come back so far
        self.assertEqual(stream.echoed, 0)
        self.assertEqual(stream._sent, WINDOW)
        echo.go_on.set()
        self.wait_until(lambda: stream.echoed > 3 * WINDOW)
        stream.stop()
        self.assertIsNone(stream.problem)
        self.assertEqual(stream.echoed, echo.received)

    def test_a_wrong_byte_is_found(self):
        echo = Echo(lambda piece, at: piece if at < 9000 else piece[:5] + bytes([piece[5] ^ 1]) + piece[6:])
        echo.go_on.set()
        stream = self.stream(echo)
        self.wait_until(lambda: stream.problem)
        self.assertRegex(stream.problem, r"byte \d+ came back as \d+, sent was \d+")
        stream.stop()

    def test_a_lost_and_a_repeated_piece_are_found(self):
        for change in (lambda piece, at: piece[1:] if at > 5000 else piece, lambda piece, at: piece * 2):
            echo = Echo(change)
            echo.go_on.set()
            stream = self.stream(echo)
            self.wait_until(lambda: stream.problem)
            self.assertIn("came back as", stream.problem)
            stream.stop()

    def test_an_early_end_is_found(self):
        echo = Echo(lambda piece, at: piece if at < 20_000 else b"")
        echo.go_on.set()
        stream = self.stream(echo)
        self.wait_until(lambda: stream.problem)
        stream.stop()
        self.assertRegex(stream.problem, "closed by the guest when|the connection broke")


if __name__ == "__main__":
    unittest.main(verbosity=2)
