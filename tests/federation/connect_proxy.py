"""A proxy that tunnels: ``python connect_proxy.py LOG [USER:PASSWORD]``. Prints its port, logs a line a tunnel."""

from __future__ import annotations

import socket
import sys
import threading
from base64 import b64encode
from pathlib import Path


def pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while part := source.recv(1 << 16):
            sink.sendall(part)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def tunnel(inner: socket.socket, log: Path, credentials: str | None) -> None:
    head = b""
    while b"\r\n\r\n" not in head:
        part = inner.recv(4096)
        if not part:
            return
        head += part
    verb, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
    if verb != "CONNECT":
        inner.sendall(b"HTTP/1.1 405 Method Not Allowed\r\n\r\n")
        inner.close()
        return
    if credentials and b"Basic " + b64encode(credentials.encode()) not in head:
        inner.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
        inner.close()
        return
    host, _, port = target.rpartition(":")
    outer = socket.create_connection((host, int(port)))
    inner.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
    first = inner.recv(1 << 16)
    with log.open("a") as file:
        file.write(f"{target} {first[:3].hex()}\n")
    outer.sendall(first)
    threading.Thread(target=pump, args=(outer, inner), daemon=True).start()
    pump(inner, outer)


def main() -> None:
    log, credentials = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            inner, _ = listener.accept()
            threading.Thread(target=tunnel, args=(inner, log, credentials), daemon=True).start()


if __name__ == "__main__":
    main()
