"""A load generator: N connections, each with w QoS 1 publishes in flight, over one epoll loop.

Packets are built beforehand; answers are counted by their length (a PUBACK has 4 bytes), so that the
generator costs less than the servers it measures. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import select
import socket
import time

PAYLOAD = (
    b'{"ts":1764000000000,"seq":12345,"metrics":{"temperature":21.53,'
    b'"humidity":40.2,"door":true,"state":"ok"}}'
)


def connect_packet(client: bytes) -> bytes:
    """Return a CONNECT of MQTT 3.1.1."""
    return bytes((0x10, 12 + len(client))) + b"\0\4MQTT\4\2\0\0" + len(client).to_bytes(2, "big") + client


def publishes(topic: bytes, count: int) -> bytes:
    """Return `count` QoS 1 publishes with packet ids from 1."""
    out = []
    for packet_id in range(1, count + 1):
        body = len(topic).to_bytes(2, "big") + topic + packet_id.to_bytes(2, "big") + PAYLOAD
        size = len(body)
        out.append(bytes((0x32, size & 0x7F | 0x80, size >> 7)) + body)
    return b"".join(out)


def run(port: int, connections: int, window: int, seconds: float, warm_up_s: float) -> dict[str, float]:
    """Drive the server and return messages a second and latency quantiles in ms."""
    poll = select.epoll()
    sockets: dict[int, socket.socket] = {}
    packets: dict[int, bytes] = {}
    owed: dict[int, int] = {}
    sent_s: dict[int, float] = {}
    for number in range(connections):
        sock = socket.create_connection(("127.0.0.1", port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client = b"bench-%d" % number
        sock.sendall(connect_packet(client))
        answer = sock.recv(4)
        assert answer == b"\x20\x02\x00\x00", answer
        descriptor = sock.fileno()
        sockets[descriptor] = sock
        packets[descriptor] = publishes(b"dt/bench/%s/metrics" % client, window)
        poll.register(descriptor, select.EPOLLIN)
    for descriptor, sock in sockets.items():
        sock.sendall(packets[descriptor])
        owed[descriptor] = 4 * window
        sent_s[descriptor] = time.perf_counter()
    began_s = time.perf_counter() + warm_up_s
    over_s = began_s + seconds
    rounds = 0
    latencies: list[float] = []
    while True:
        events = poll.poll(1.0)
        now_s = time.perf_counter()
        if now_s >= over_s:
            break
        for descriptor, _ in events:
            sock = sockets[descriptor]
            left = owed[descriptor] - len(sock.recv(65_536))
            if left > 0:
                owed[descriptor] = left
                continue
            owed[descriptor] = 4 * window
            if now_s >= began_s:
                rounds += 1
                if not rounds & 15:
                    latencies.append(time.perf_counter() - sent_s[descriptor])
            sent_s[descriptor] = time.perf_counter()
            sock.send(packets[descriptor])
    latencies.sort()
    for sock in sockets.values():
        sock.close()
    return {
        "messages_per_s": rounds * window / seconds,
        "p50_ms": 1000 * latencies[len(latencies) // 2] if latencies else 0.0,
        "p99_ms": 1000 * latencies[len(latencies) * 99 // 100] if latencies else 0.0,
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--connections", type=int, default=100)
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--warm-up", type=float, default=1.0)
    options = parser.parse_args()
    print(
        json.dumps(run(options.port, options.connections, options.window, options.seconds, options.warm_up))
    )


if __name__ == "__main__":
    main()
