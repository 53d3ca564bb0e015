"""Sends datagrams to itself over the loopback, and then waits, or ends.

    python3 talk.py NUMBER [SECONDS]

Runs in containers, by the host's own Python. SECONDS: how long it waits (an hour).
"""

import socket
import sys
import time

BYTES = 100 + 20 + 8  # of each datagram, from the IP header on


def main(number: int, seconds: float) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as talker:
        talker.bind(("127.0.0.1", 0))
        talker.settimeout(10)
        for _ in range(number):
            talker.sendto(bytes(100), talker.getsockname())
            assert len(talker.recv(200)) == 100
    print("said", flush=True)
    time.sleep(seconds)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 3600)
