"""A proxy before an HTTP server that does to its requests what networks and servers do."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections import Counter
from typing import Self

HEADER_END = b"\r\n\r\n"
SERVER_ERROR = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
BUFFER_BYTES = 1 << 16


class FaultyProxy:
    """Passes each request to a server, or spoils it, by chance.

    A cut answer is the hardest case: the server has done what was asked, and the client does not know.

    Args:
        port: Of the server on this machine.
        seed: Of the random choices.
        faults: Share of the requests that each fault strikes: "delay", "500", "refuse", "cut", "lose".
        delay_s: Longest delay.
    """

    def __init__(self, port: int, *, seed: int, faults: dict[str, float], delay_s: float) -> None:
        self._port, self._faults, self._delay_s = port, faults, delay_s
        self._random = random.Random(seed)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._closed = threading.Event()
        self.counts: Counter[str] = Counter()
        """How often each fault has struck, and how many requests were passed on."""

    @property
    def uri(self) -> str:
        """Where clients connect to."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()
        return self

    def __exit__(self, *arguments: object) -> None:
        self._closed.set()
        self._listener.close()

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), name="proxy", daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """One request, after which the connection is closed."""
        with client, contextlib.suppress(OSError):
            client.settimeout(60)
            fault = self._choose()
            self.counts[fault] += 1
            if fault == "refuse":
                return
            request = _message(client)
            if fault == "delay":
                time.sleep(self._random.uniform(0, self._delay_s))
            if fault == "500":
                client.sendall(SERVER_ERROR)
                return
            answer = self._ask(_closing(request))
            if fault == "cut":
                client.sendall(answer[: self._random.randrange(len(answer))])
            elif fault != "lose":
                client.sendall(answer)

    def _ask(self, request: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self._port), timeout=60) as server:
            server.sendall(request)
            pieces = []
            while piece := server.recv(BUFFER_BYTES):
                pieces.append(piece)
            return b"".join(pieces)

    def _choose(self) -> str:
        draw = self._random.random()
        for fault, share in self._faults.items():
            draw -= share
            if draw < 0:
                return fault
        return "passed"


def _message(client: socket.socket) -> bytes:
    """The whole request: head, and a body of the length that the head gives, or in chunks."""
    content = b""
    while HEADER_END not in content:
        content += _more(client)
    head, _, body = content.partition(HEADER_END)
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    length = int(fields.get(b"content-length", b"0"))
    is_chunked = fields.get(b"transfer-encoding") == b"chunked"
    while len(body) < length or (is_chunked and not body.endswith(b"0" + HEADER_END)):
        body += _more(client)
    return head + HEADER_END + body


def _more(client: socket.socket) -> bytes:
    piece = client.recv(BUFFER_BYTES)
    if not piece:
        raise ConnectionError("the client has gone")
    return piece


def _closing(request: bytes) -> bytes:
    """The request, with which the server closes the connection after its answer."""
    head, _, body = request.partition(HEADER_END)
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
    return b"\r\n".join([*lines, b"Connection: close"]) + HEADER_END + body
