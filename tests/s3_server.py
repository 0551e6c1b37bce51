"""An S3 server on loopback, and a proxy before it that misbehaves as object stores do."""

from __future__ import annotations

import http.client
import logging
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from moto.server import ThreadedMotoServer
from pyarrow import fs

_OF_THIS_HOP = ("connection", "transfer-encoding")
PLAIN, THROTTLE, STALL, CUT = "plain", "throttle", "stall", "cut"
_SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"


@dataclass
class Behaviour:
    """What the proxy does with the n-th request: ``decide(number, method, path)`` gives one of the four words."""

    decide: Callable[[int, str, str], str] = lambda number, method, path: PLAIN
    stall_seconds: float = 3.0
    counts: dict[str, int] = field(default_factory=dict)
    _number: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def next(self, method: str, path: str) -> str:
        with self._lock:
            word = self.decide(self._number, method, path)
            self._number += 1
            self.counts[word] = self.counts.get(word, 0) + 1
            return word


def _handler(behaviour: Behaviour, port: int) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except (ConnectionError, TimeoutError):
                self.close_connection = True

        def answer(self) -> None:
            word = behaviour.next(self.command, self.path)
            body = self.body(0.5 if word == CUT else 1.0)
            if word == CUT:  # half of the upload is taken, then the line is dead
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            if word == THROTTLE:
                self.reply(503, {"Content-Type": "application/xml"}, _SLOW_DOWN)
                return
            if word == STALL:
                time.sleep(behaviour.stall_seconds)
            upstream = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            headers = {key: value for key, value in self.headers.items() if key.lower() not in _OF_THIS_HOP}
            upstream.request(self.command, self.path, body, headers)
            response = upstream.getresponse()
            content = response.read()
            kept = {key: value for key, value in response.getheaders() if key.lower() not in _OF_THIS_HOP}
            self.reply(response.status, kept, content)
            upstream.close()

        def body(self, share: float) -> bytes:
            if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                return self.rfile.read(int(int(self.headers.get("Content-Length") or 0) * share))
            parts = []
            while size := int(self.rfile.readline().partition(b";")[0], 16):
                parts.append(self.rfile.read(int(size * share)))
                if share < 1:
                    return b"".join(parts)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass  # trailers
            return b"".join(parts)

        def reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for key, value in headers.items():
                if key.lower() not in ("content-length", "date", "server"):
                    self.send_header(key, value)
            length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Be quiet."""

    return Handler


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def query(port: int) -> str:
    """The part of an S3 URI that leads here."""
    return f"scheme=http&endpoint_override=127.0.0.1:{port}&region=us-east-1"


@contextmanager
def s3_behind_proxy(behaviour: Behaviour) -> Iterator[tuple[str, str]]:
    """Queries of URIs: straight to the server, and through the proxy. The bucket is ``data``."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line a request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=free_port(), verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    # Its servers of one process share what they hold: forget the last test's.
    urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/moto-api/reset", method="POST")).close()
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), _handler(behaviour, port))
    proxy.daemon_threads = True
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        straight = query(port)
        fs.FileSystem.from_uri(f"s3://data?{straight}&allow_bucket_creation=true")[0].create_dir("data")
        yield straight, query(proxy.server_address[1])
    finally:
        proxy.shutdown()
        proxy.server_close()
        server.stop()
