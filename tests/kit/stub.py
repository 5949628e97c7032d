"""A replica that behaves as a test says, and sees who leaves."""

from __future__ import annotations

import json
import select
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Stub:
    """``mode`` is a status, or one of the words below. The body ``slow`` is never answered."""

    def __init__(self) -> None:
        self.mode, self.served, self.left, self.bodies = "ok", 0, 0, list[bytes]()
        self.heads: list[tuple[str, list[tuple[str, str]]]] = []
        self.release = threading.Event()
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                stub.served += 1
                stub.bodies.append(body)
                stub.heads.append((self.path, self.headers.items()))
                mode = stub.mode
                if mode == "hang" or body == b"slow":
                    self._hold()
                    self.close_connection = True
                elif mode == "kill":
                    self.close_connection = True
                elif mode == "cut":  # in the middle of a short answer
                    self._head(200, {"Content-Length": "100"})
                    self.wfile.write(b"half")
                    self.close_connection = True
                elif mode == "cut stream":
                    self._head(200, {"Transfer-Encoding": "chunked"})
                    self.wfile.write(b"5\r\nfirst\r\n")
                    self.close_connection = True
                elif mode == "stream":
                    self._head(200, {"Transfer-Encoding": "chunked"})
                    self.wfile.write(b"5\r\nfirst\r\n")
                    self._hold()
                    if not self.close_connection:
                        self.wfile.write(b"4\r\nlast\r\n0\r\n\r\n")
                elif mode == "drip":
                    for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n":
                        if stub.release.wait(0.1) or self._leaves():
                            break
                        self.wfile.write(bytes([byte]))
                    self.close_connection = True
                elif mode == "events":  # as a language model's server sends tokens
                    self._head(200, {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"})
                    self.wfile.write(b'17\r\ndata: {"choices": []}\n\n\r\n')
                    self._hold()
                    self.wfile.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
                elif mode == "flood":
                    self._head(200, {"Transfer-Encoding": "chunked"})
                    while not stub.release.is_set() and not self._leaves():
                        try:
                            self.wfile.write(b"10000\r\n%s\r\n" % (b"x" * 65536))
                        except ConnectionError:
                            stub.left += 1
                            break
                    self.close_connection = True
                else:
                    code = int(mode) if mode.isdigit() else {"full": 503, "lost": 500}.get(mode, 200)
                    data = json.dumps({"port": stub.port, "headers": dict(self.headers)}).encode()
                    headers = {"Content-Length": str(len(data)), "X-Replica": str(stub.port)}
                    headers |= {"full": {"Retry-After": "7"}, "lost": {"X-GPU-Lost": "true"}}.get(mode, {})
                    self._head(code, headers)
                    if self.command != "HEAD":
                        self.wfile.write(data)

            do_GET = do_PUT = do_HEAD = do_POST  # noqa: N815 - http.server calls them so

            def _head(self, code: int, headers: dict[str, str]) -> None:
                self.send_response(code)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()

            def _hold(self) -> None:
                """Until the test, or the gateway, lets go."""
                while not stub.release.wait(0.01):
                    if self._leaves():
                        stub.left += 1
                        self.close_connection = True
                        return

            def _leaves(self) -> bool:
                try:
                    readable = select.select([self.connection], [], [], 0)[0]
                    return bool(readable) and self.connection.recv(1, socket.MSG_PEEK) == b""
                except ConnectionError:
                    return True

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def close(self) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
