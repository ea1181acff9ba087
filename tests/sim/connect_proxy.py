"""A small HTTP proxy that speaks CONNECT and nothing else, as firewalls of companies do."""

from __future__ import annotations

import base64
import contextlib
import select
import socket
import threading
from typing import Self
from urllib.parse import quote


class ConnectProxy:
    """`ports` are those that it lets out; with a `user` it asks for a password. `asked` lists (host, port) let out."""

    def __init__(self, *, ports: set[int], user: str = "", password: str = "") -> None:
        self._ports = ports
        self._basic = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode() if user else ""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.asked: list[tuple[str, int]] = []
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]

    def url(self, user: str = "", password: str = "") -> str:
        who = f"{quote(user, safe='')}:{quote(password, safe='')}@" if user else ""
        return f"http://{who}127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in list(self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._open.append(client)
                thread = threading.Thread(target=self._serve, args=(client,))
                self._threads.append(thread)
                thread.start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError, ValueError):
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                byte = client.recv(1)
                if not byte:
                    return
                head += byte
            lines = head.decode().split("\r\n")
            method, target, _ = lines[0].split(" ")
            said = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:])}
            host, _, port = target.rpartition(":")
            if self._basic and said.get("proxy-authorization") != self._basic:
                client.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            elif method != "CONNECT" or int(port) not in self._ports:
                client.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
            else:
                self.asked.append((host, int(port)))
                with socket.create_connection((host, int(port)), 10) as hub:
                    client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                    self._pass_on(client, hub)

    def _pass_on(self, client: socket.socket, hub: socket.socket) -> None:
        other = {client: hub, hub: client}
        while True:
            for one in select.select([client, hub], [], [])[0]:
                data = one.recv(65536)
                if not data:
                    return
                other[one].sendall(data)
