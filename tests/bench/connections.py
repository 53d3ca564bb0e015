"""A worker that holds both ends of TCP connections over loopback, and has every one send and receive."""

import os
import resource
import socket
import sys

from tests.bench.support import RESET_AT_CLOSE
from tests.bench.worker import obey


def main(address: str, count: int) -> None:
    """Answer once when all is connected, then to every question; end when standard input ends."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    ends = []
    with socket.create_server((address, 0)) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)  # accepted ones inherit it
        for _ in range(count):
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
            client.connect(server.getsockname())
            accepted, _ = server.accept()
            ends.append((client.detach(), accepted.detach()))

    def send() -> str:
        for client, accepted in ends:
            os.write(client, b"x")
            os.read(accepted, 1)
            os.write(accepted, b"x")
            os.read(client, 1)
        return "sent"

    while obey(send):
        pass


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
