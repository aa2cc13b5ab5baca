"""A pod whose traffic iptables redirect to its Envoy, as App Mesh's proxy configuration did.

    unshare --net --mount python -m tests.support.redirected_pod ENVOY CONFIG

Two network namespaces with a wire between them: here is the world (10.9.0.1, 10.9.0.3) with
its DNS, there is the pod (10.9.0.2)
with an application on 127.0.0.1:8080 and an Envoy that runs as user 1337. Prints what was answered, as JSON.
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import dns.message
import dns.rdatatype
import dns.rrset

WORLD, POD, OTHER, PORT = "10.9.0.1", "10.9.0.2", "10.9.0.3", 8080
ENVOY_USER: Final = "1337"
DEADLINE_S: Final = 20.0
WIRES: Final = [
    "mkdir -p /run/netns",
    "mount -t tmpfs none /run/netns",
    "ip netns add pod",
    "ip link set lo up",
    "ip link add world type veth peer name pod netns pod",
    f"ip addr add {WORLD}/24 dev world",
    f"ip addr add {OTHER}/24 dev world",
    "ip link set world up",
    "ip -n pod link set lo up",
    f"ip -n pod addr add {POD}/24 dev pod",
    "ip -n pod link set pod up",
]
RULES: Final = [
    f"PREROUTING -p tcp --dport {PORT} -j REDIRECT --to-ports 15000",
    f"OUTPUT -p tcp ! -o lo -m owner ! --uid-owner {ENVOY_USER} -j REDIRECT --to-ports 15001",
]


class Answering(http.server.BaseHTTPRequestHandler):
    """Says where it is asked, and for which host."""

    def do_GET(self) -> None:
        host, port = self.connection.getsockname()
        body = f"{host}:{port} {self.headers['Host']}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Through", self.headers.get("x-request-id", ""))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def serve_http(host: str, port: int) -> None:
    server = http.server.ThreadingHTTPServer((host, port), Answering)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def serve_banner(port: int) -> None:
    """Speak first, as databases do."""
    listening = socket.create_server((WORLD, port))

    def answer() -> None:
        while True:
            connection, _ = listening.accept()
            with connection:
                connection.sendall(f"banner of {port}".encode())

    threading.Thread(target=answer, daemon=True).start()


def serve_names(names: dict[str, list[str]]) -> None:
    """Answer for addresses of version 4 by what `names` has at the time."""
    asked = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    asked.bind((WORLD, 53))

    def answer() -> None:
        while True:
            data, caller = asked.recvfrom(4096)
            question = dns.message.from_wire(data)
            made = dns.message.make_response(question)
            name, kind = question.question[0].name, question.question[0].rdtype
            addresses = names.get(name.to_text(omit_final_dot=True), [])
            if addresses and kind == dns.rdatatype.A:
                made.answer.append(dns.rrset.from_text(name, 1, "IN", "A", *addresses))
            asked.sendto(made.to_wire(), caller)

    threading.Thread(target=answer, daemon=True).start()


def get(address: str, port: int, host: str) -> Any:
    """Return status and body, and whether an Envoy was asked on the way."""
    connection = http.client.HTTPConnection(address, port, timeout=DEADLINE_S)
    try:
        connection.request("GET", "/", headers={"Host": host})
        answer = connection.getresponse()
        return [answer.status, answer.read().decode(), bool(answer.getheader("X-Through"))]
    except OSError as error:
        return [0, type(error).__name__, False]
    finally:
        connection.close()


def banner(port: int) -> str:
    """Return what is said first on a port."""
    with socket.create_connection((WORLD, port), timeout=DEADLINE_S) as connection:
        connection.settimeout(DEADLINE_S)
        try:
            return connection.recv(100).decode()
        except ConnectionResetError:
            return ""


def in_pod() -> None:
    """Serve the application, ask out of the pod, and then serve until standard input ends."""
    serve_http("127.0.0.1", PORT)
    for line in sys.stdin:
        if line.startswith("ask"):
            said: Any = answers()
        else:
            said = [get(WORLD, 80, line.strip())[1].partition(":")[0] for _ in range(10)]
        sys.stdout.write(json.dumps(said) + "\n")
        sys.stdout.flush()


def answers() -> dict[str, Any]:
    return {
        "backend": get(WORLD, 80, "cart.local"),
        "backend by another address": get("10.9.0.77", 80, "cart.local"),
        "no backend": get(WORLD, 9001, f"{WORLD}:9001"),
        "tcp backend": banner(5432),
        "no tcp backend": banner(5433),
    }


@contextlib.contextmanager
def process(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as started:
        try:
            yield started
        finally:
            started.terminate()


def wait_for(answers: Any) -> None:
    until_s = time.monotonic() + DEADLINE_S
    while True:
        with contextlib.suppress(OSError):
            answers()
            return
        if time.monotonic() > until_s:
            raise TimeoutError
        time.sleep(0.05)


def asked(pod: subprocess.Popen[str], what: str) -> Any:
    """Ask out of the pod, and return what was answered."""
    assert pod.stdin is not None
    assert pod.stdout is not None
    pod.stdin.write(f"{what}\n")
    pod.stdin.flush()
    return json.loads(pod.stdout.readline())


def main(envoy: str, config: str) -> None:
    for command in WIRES:
        subprocess.run(command.split(), check=True)
    for rule in RULES:
        subprocess.run(
            ["ip", "netns", "exec", "pod", "iptables", "-t", "nat", "-A", *rule.split()], check=True
        )
    names = {"many.test": [WORLD, OTHER], "one.test": [WORLD, OTHER]}
    serve_names(names)
    resolver = Path(config).with_suffix(".resolv")
    resolver.write_text(f"nameserver {WORLD}\n")
    resolver.chmod(0o644)
    subprocess.run(["mount", "--bind", str(resolver), "/etc/resolv.conf"], check=True)
    resolver.unlink()
    serve_http(WORLD, 9000)
    serve_http(OTHER, 9000)
    serve_http(WORLD, 9001)
    serve_banner(5432)
    serve_banner(5433)
    inside = ["ip", "netns", "exec", "pod"]
    as_envoy = ["setpriv", "--reuid", ENVOY_USER, "--regid", ENVOY_USER, "--clear-groups"]
    options = ["--disable-hot-restart", "--concurrency", "1", "--log-level", "error"]
    with (
        process([*inside, *as_envoy, envoy, "-c", config, *options]),
        process([*inside, sys.executable, "-m", "tests.support.redirected_pod"]) as pod,
    ):
        wait_for(lambda: socket.create_connection((POD, 15_000), timeout=1).close())
        said = asked(pod, "ask")
        said["application"] = get(POD, PORT, "front.local")
        said["many"] = sorted(set(asked(pod, "many.local")))
        # Its one address may become another when the name is asked for again, which is not twice in 5 s.
        said["one"] = min((sorted(set(asked(pod, "one.local"))) for _ in range(2)), key=len)
        names["many.test"] = [OTHER]
        until_s = time.monotonic() + DEADLINE_S
        while set(left := asked(pod, "many.local")) != {OTHER} and time.monotonic() < until_s:
            time.sleep(0.2)
        said["left"] = sorted(set(left))
        sys.stdout.write(json.dumps(said) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:]) if len(sys.argv) > 1 else in_pod()
