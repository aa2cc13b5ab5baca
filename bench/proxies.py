"""The API gateway beside nginx and Envoy: each a proxy on core 0 in turns, upstream and load on core 1.

    python -m bench.proxies [--rounds N] [--seconds S] [--json]

The upstream is an nginx that answers from memory; the load is wrk with keep-alive connections. nginx and
Envoy only pass on; Headworks is measured passing on as they do (`open`), and with an API key, scopes, a usage
plan and the access log (`keyed`). CPU is that of the proxy process, in both spaces, a request.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
from rich.console import Console
from rich.table import Table

from bench.side_by_side.servers import LOAD_CORE, ROOT, Server, running, scratch, wait_for
from loadtests.node import free_port

PROXY_CORE: Final = "0"
CONNECTIONS: Final = 50
EDGE_S: Final = 0.3
ANSWER: Final = '{"device":"pump-7","tenant":"acme","status":"active","attributes":{"site":"north"}}'
NGINX_UPSTREAM: Final = """\
daemon off;
worker_processes 1;
pid {folder}/upstream.pid;
error_log stderr crit;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{ default_type application/json; return 200 '{answer}'; }}
    }}
}}
"""
NGINX: Final = """\
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr crit;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    upstream things {{ server 127.0.0.1:{upstream}; keepalive 256; keepalive_requests 1000000000; }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://things;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header X-Forwarded-For $remote_addr;
        }}
    }}
}}
"""
ENVOY: Final = """\
static_resources:
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/{manager}
          stat_prefix: bench
          route_config:
            virtual_hosts:
            - name: things
              domains: ["*"]
              routes: [{{match: {{prefix: "/"}}, route: {{cluster: things}}}}]
          http_filters:
          - name: envoy.filters.http.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
  clusters:
  - name: things
    type: STATIC
    load_assignment:
      cluster_name: things
      endpoints:
      - lb_endpoints:
        - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {upstream}}}}}}}
"""
ENVOY_MANAGER: Final = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
API: Final = """\
[api]
bind = "127.0.0.1:{port}"
tls = "off"
data_dir = "{folder}/api"
registry = "{folder}/registry.db"
routes = "{folder}/routes.toml"
[admin]
bind = "127.0.0.1:{admin}"
[limits.default]
requests_per_s = 1000000
requests_burst_s = 10
concurrent_max = 10000
[log]
level = "{level}"
"""
ROUTES: Final = """\
[upstreams.things]
discovery = {{ kind = "static", endpoints = [{{ address = "127.0.0.1:{upstream}" }}] }}
[authorizers.key]
kind = "api_key"
[[routes]]
name = "open"
method = "GET"
path = "/v1/open/{{device}}"
upstream = "things"
public = true
[[routes]]
name = "keyed"
method = "GET"
path = "/v1/tenants/{{tenant}}/devices/{{device}}"
upstream = "things"
authorizers = ["key"]
scopes = ["devices:read"]
"""
OPEN: Final = "/v1/open/pump-7"
KEYED: Final = "/v1/tenants/acme/devices/pump-7"


class Proxy(msgspec.Struct, frozen=True):
    """Who is measured: its process and port, the path that is asked for, and a header where it is needed."""

    server: Server
    path: str
    header: str = ""


class Figures(msgspec.Struct, frozen=True):
    """What one run gave. CPU is microseconds a request of the proxy."""

    per_s: float
    cpu_us: float
    p50_ms: float
    p99_ms: float


def _started(
    command: list[str], port: int, core: str, log: Path
) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    @contextlib.contextmanager
    def run() -> Iterator[subprocess.Popen[bytes]]:
        with running(command, core, log) as process:
            wait_for(port, process, log)
            yield process

    return run()


@contextlib.contextmanager
def upstream(folder: Path) -> Iterator[int]:
    """Run what answers, beside the load."""
    port = free_port()
    settings = folder / "upstream.conf"
    settings.write_text(NGINX_UPSTREAM.format(folder=folder, port=port, answer=ANSWER))
    command = [_program("nginx"), "-c", str(settings), "-p", str(folder)]
    with _started(command, port, LOAD_CORE, folder / "upstream.log"):
        yield port


def _program(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/bin")
    if found is None:
        raise SystemExit(f"{name} is missing: run make setup as root on Debian, or install it")
    return found


def _workers(master: int) -> tuple[int, ...]:
    """Return a process and its children: nginx has a master that does nothing."""
    children = Path(f"/proc/{master}/task/{master}/children").read_text().split()
    return (master, *map(int, children))


@contextlib.contextmanager
def nginx(folder: Path, behind: int) -> Iterator[Proxy]:
    """Run nginx as a proxy with one worker."""
    port = free_port()
    settings = folder / "nginx.conf"
    settings.write_text(NGINX.format(folder=folder, port=port, upstream=behind))
    command = [_program("nginx"), "-c", str(settings), "-p", str(folder)]
    with _started(command, port, PROXY_CORE, folder / "nginx.log") as process:
        yield Proxy(Server(ports={"http": port}, pids=_workers(process.pid)), OPEN)


@contextlib.contextmanager
def envoy(folder: Path, behind: int) -> Iterator[Proxy]:
    """Run Envoy as a proxy with one worker thread."""
    port = free_port()
    settings = folder / "envoy.yaml"
    settings.write_text(ENVOY.format(manager=ENVOY_MANAGER, port=port, upstream=behind))
    command = [str(Path(sys.executable).with_name("envoy")), "-c", str(settings)]
    command += ["--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]
    with _started(command, port, PROXY_CORE, folder / "envoy.log") as process:
        yield Proxy(Server(ports={"http": port}, pids=_workers(process.pid)), OPEN)


@contextlib.contextmanager
def headworks(folder: Path, behind: int, *, keyed: bool) -> Iterator[Proxy]:
    """Run the API gateway."""
    port, admin = free_port(), free_port()
    level = "info" if keyed else "warning"
    (folder / "api.toml").write_text(API.format(folder=folder, port=port, admin=admin, level=level))
    (folder / "routes.toml").write_text(ROUTES.format(upstream=behind))
    header = f"X-API-Key: {_key(folder)}" if keyed else ""
    command = [sys.executable, "-m", "commands.cli", "api", "--config", str(folder / "api.toml")]
    with _started(command, port, PROXY_CORE, folder / "api.log") as process:
        yield Proxy(Server(ports={"http": port}, pids=(process.pid,)), KEYED if keyed else OPEN, header)


def _key(folder: Path) -> str:
    """Issue an API key, and return it."""
    cli = [sys.executable, "-m", "commands.cli"]
    at = ["--data-dir", str(folder)]
    subprocess.run([*cli, "tenants", "add", "acme", *at], check=True, cwd=ROOT, capture_output=True)
    words = ["keys", "issue", "acme", "bench", "--scopes", "devices:read", *at]
    issued = subprocess.run([*cli, *words], check=True, cwd=ROOT, capture_output=True).stdout
    return issued.decode().strip()


def measured(proxy: Proxy, seconds: float) -> Figures:
    """Return the figures of a proxy under load."""
    url = f"http://127.0.0.1:{proxy.server.ports['http']}{proxy.path}"
    command = ["taskset", "-c", LOAD_CORE, _program("wrk"), "-t1", f"-c{CONNECTIONS}", "--latency"]
    headers = ["-H", proxy.header] if proxy.header else []
    _wrk([*command, "-d1s", *headers, url])
    with subprocess.Popen(
        [*command, f"-d{seconds:g}s", *headers, url], stdout=subprocess.PIPE, text=True
    ) as load:
        time.sleep(EDGE_S)
        began_s, before = time.monotonic(), sum(proxy.server.cpu_s())
        time.sleep(seconds - 2 * EDGE_S)
        took_s, used_s = time.monotonic() - began_s, sum(proxy.server.cpu_s()) - before
        said, _ = load.communicate()
    per_s, p50_ms, p99_ms = _read(said)
    return Figures(per_s, used_s / took_s / per_s * 1e6, p50_ms, p99_ms)


def _wrk(command: list[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _read(said: str) -> tuple[float, float, float]:
    """Return requests a second, p50 and p99 in milliseconds of what wrk prints."""
    if "Non-2xx" in said or "Socket errors" in said:
        raise SystemExit(f"not every request was answered:\n{said}")
    rate = re.search(r"Requests/sec:\s+([\d.]+)", said)
    quantiles = dict(re.findall(r"(50|99)%\s+([\d.]+(?:us|ms|s))", said))
    assert rate is not None
    return float(rate[1]), _ms(quantiles["50"]), _ms(quantiles["99"])


def _ms(text: str) -> float:
    for unit, times in (("us", 0.001), ("ms", 1.0), ("s", 1000.0)):
        if text.endswith(unit):
            return float(text.removesuffix(unit)) * times
    raise ValueError(text)


def all_runs(rounds: int, seconds: float, progress: Console) -> dict[str, list[Figures]]:
    """Measure everybody in turns."""
    runs: dict[str, list[Figures]] = {}
    with tempfile.TemporaryDirectory(dir=scratch()) as temporary, progress.status("") as status:
        folder = Path(temporary).resolve()
        with upstream(folder) as behind:
            for round_ in range(rounds):
                for name in ("nginx", "envoy", "headworks open", "headworks keyed"):
                    status.update(f"round {round_ + 1} of {rounds}: {name}")
                    place = folder / f"{name.replace(' ', '-')}-{round_}"
                    place.mkdir()
                    if name == "nginx":
                        starts = nginx(place, behind)
                    elif name == "envoy":
                        starts = envoy(place, behind)
                    else:
                        starts = headworks(place, behind, keyed=name.endswith("keyed"))
                    with starts as proxy:
                        runs.setdefault(name, []).append(measured(proxy, seconds))
    return runs


def summed(runs: dict[str, list[Figures]]) -> dict[str, dict[str, float]]:
    """Return medians, and the medians of the ratios to nginx in the same round."""
    made = {}
    for name, figures in runs.items():
        pairs = list(zip(figures, runs["nginx"], strict=True))
        made[name] = {
            field: statistics.median(getattr(each, field) for each in figures)
            for field in Figures.__struct_fields__
        } | {
            "rate_ratio": statistics.median(ours.per_s / theirs.per_s for ours, theirs in pairs),
            "cpu_ratio": statistics.median(ours.cpu_us / theirs.cpu_us for ours, theirs in pairs),
        }
    return made


def main() -> None:
    """Measure in turns and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    made = summed(all_runs(options.rounds, options.seconds, Console(stderr=True)))
    if options.json:
        print(json.dumps(made))
        return
    table = Table(
        title=f"GET of {len(ANSWER)} bytes through a proxy on one core, {CONNECTIONS} connections; x: nginx",
        box=None,
        pad_edge=False,
    )
    for title in ("", "requests/s", "x", "us CPU", "x CPU", "p50 ms", "p99 ms"):
        table.add_column(title, justify="right" if title else "left")
    for name, row in made.items():
        table.add_row(
            name,
            f"{row['per_s']:,.0f}",
            f"{row['rate_ratio']:.2f}",
            f"{row['cpu_us']:.1f}",
            f"{row['cpu_ratio']:.2f}",
            f"{row['p50_ms']:.2f}",
            f"{row['p99_ms']:.2f}",
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
