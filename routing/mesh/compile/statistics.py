"""What a proxy counts: labels for Prometheus, and a listener at which nothing but that can be asked for.

Source: https://www.envoyproxy.io/docs/envoy/latest/api-v3/config/metrics/v3/stats.proto .
"""

from __future__ import annotations

import re
from typing import Final

from envoy.extensions.filters.http.router.v3.router_pb2 import Router
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)

from routing.mesh.compile.messages import Config, address, extension, milliseconds, number
from routing.mesh.compile.proxy import LOOPBACK, Address, Proxy

LISTENER: Final = "headworks_stats"
ADMIN: Final = "headworks_admin"
PATHS: Final = ("/stats/prometheus", "/ready")
SCRAPE_MS: Final = 10_000
AT_ONCE_MAX: Final = 4
"""Scrapes: each takes the time of the one thread that takes configuration too."""
CONNECTIONS_MAX: Final = 64
PROTOCOL: Final = "(?:http2|http|grpc|tcp)"
KINDS: Final = {"virtualNode": "virtual_node", "virtualGateway": "virtual_gateway"}


def counting(path: str, mesh: str, proxy: Proxy) -> Config:
    """Return the part of a bootstrap that is about what is counted: the admin port, and the labels."""
    return {
        "admin": {"address": address(LOOPBACK, proxy.admin_port)},
        "stats_config": _labels(mesh, path),
    }


def _labels(mesh: str, path: str) -> Config:
    """Return how names of statistics become labels: who counts, whom it calls, and by which route.

    The first group of an expression is taken out of the name, the second is the label. Envoy's own labels
    stay as they are: its name of a cluster ends at a dot, and so nothing is said of a callee behind one.
    """
    kind, _, name = path.removeprefix(f"mesh/{mesh}/").partition("/")
    cluster, of_mesh = r"^cluster\.cds_", re.escape(mesh.replace(":", "_"))
    of_clusters = [
        {
            "tag_name": "callee",
            "regex": rf"{cluster}egress_{of_mesh}_(([^.]+?)_){PROTOCOL}_[0-9]+[._]",
        },
        {"tag_name": "protocol", "regex": rf"{cluster}[a-z]+_{of_mesh}_[^.]+?_(({PROTOCOL})_)[0-9]+[._]"},
    ]
    return {
        "stats_tags": [
            {"tag_name": "mesh", "fixed_value": mesh},
            {"tag_name": KINDS[kind], "fixed_value": name},
            *([] if "." in mesh else of_clusters),
            {"tag_name": "service", "regex": r"^vhost\.((.+?)\.)route\."},
            {"tag_name": "route", "regex": r"^vhost\..+?\.route\.((.+)\.)upstream_rq"},
        ]
    }


def stats_listeners(proxy: Proxy) -> list[Config]:
    """Return the listener of a scraper, if a proxy has one."""
    return [] if proxy.stats is None else [_listener(proxy.stats)]


def stats_clusters(proxy: Proxy) -> list[Config]:
    """Return the cluster of the admin port, if a scraper is passed on to it."""
    return [] if proxy.stats is None else [_admin(proxy.admin_port)]


def _listener(at: Address) -> Config:
    """Return the listener of a scraper: GET of a few paths of the admin port, all else is 404."""
    got = {"name": ":method", "string_match": {"exact": "GET"}}
    route = {"cluster": ADMIN, "timeout": milliseconds(SCRAPE_MS)}
    routes = [{"match": {"path": path, "headers": [got]}, "route": route} for path in PATHS]
    table = {"name": LISTENER, "virtual_hosts": [{"name": LISTENER, "domains": ["*"], "routes": routes}]}
    manager: Config = {
        "stat_prefix": LISTENER,
        "route_config": table,
        "http_filters": [extension("envoy.filters.http.router", Router)],
        "use_remote_address": {"value": True},
        "request_headers_timeout": milliseconds(SCRAPE_MS),
        "common_http_protocol_options": {"idle_timeout": milliseconds(120_000)},
    }
    chain = extension("envoy.filters.network.http_connection_manager", HttpConnectionManager, manager)
    return {
        "name": LISTENER,
        "address": address(at.host, at.port),
        "ignore_global_conn_limit": True,
        "filter_chains": [{"filters": [chain]}],
    }


def _admin(port: int) -> Config:
    """Return the cluster of a proxy's own admin port."""
    endpoint = {"endpoint": {"address": address(LOOPBACK, port)}}
    limits = {"max_connections": number(AT_ONCE_MAX), "max_pending_requests": number(AT_ONCE_MAX)}
    return {
        "name": ADMIN,
        "type": "STATIC",
        "connect_timeout": milliseconds(1000),
        "circuit_breakers": {"thresholds": [limits]},
        "load_assignment": {"cluster_name": ADMIN, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
