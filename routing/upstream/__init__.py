"""Calls to upstreams: connections, tries, time-outs."""
