"""Real servers for tests, each on a free port, stopped by whoever started it."""

from __future__ import annotations

import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def s3_server(*buckets: str) -> Iterator[str]:
    """moto's S3 over HTTP: yields its endpoint. One request at a time: a conditional put is then as
    atomic as the real one."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, type: str, message: str, *args: object) -> None: ...

    app = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", 0, app, threaded=False, request_handler=Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        for bucket in buckets:
            request = urllib.request.Request(f"{endpoint}/{bucket}", method="PUT")
            urllib.request.urlopen(request).close()
        yield endpoint
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def bad_server(reply: bytes | None) -> Iterator[str]:
    """Answers every connection with these bytes and closes it; None: never answers. Yields its
    endpoint."""
    held: list[socket.socket] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
                held.append(connection)
                if reply is not None:
                    connection.recv(65536)
                    connection.sendall(reply)
                    connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                if listener.fileno() < 0:
                    return

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
        for connection in held:
            connection.close()
