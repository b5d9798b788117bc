"""HTTP clients for servers on this machine, which a proxy in the environment must not see.

Many networks set `HTTP_PROXY` or `ALL_PROXY`. httpx, requests and urllib then send even a request to
127.0.0.1 to the proxy, which cannot reach it. Every client of ours for an engine, the gateway or a fake
server is therefore made here. Downloads from other hosts keep the proxy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

_HOSTS = ("127.0.0.1", "localhost", "::1")


def client(**options: Any) -> httpx.Client:
    """Make a client that ignores proxies; takes the options of `httpx.Client`."""
    return httpx.Client(trust_env=False, **options)


def async_client(**options: Any) -> httpx.AsyncClient:
    """Make a client that ignores proxies; takes the options of `httpx.AsyncClient`."""
    return httpx.AsyncClient(trust_env=False, **options)


def get(url: str, **options: Any) -> httpx.Response:
    """Send one GET request past any proxy; takes the options of `httpx.get`."""
    return httpx.get(url, trust_env=False, **options)


def post(url: str, **options: Any) -> httpx.Response:
    """Send one POST request past any proxy; takes the options of `httpx.post`."""
    return httpx.post(url, trust_env=False, **options)


def no_proxy(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that keep a program's own loopback requests away from a proxy.

    SGLang, for example, warms itself up with a request to its own port.

    Args:
        environment: Variables that the program gets otherwise.

    Returns:
        `NO_PROXY` in both spellings, with the hosts that were in it before.
    """
    before = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    hosts = [host.strip() for host in before.split(",") if host.strip()]
    value = ",".join([*hosts, *(host for host in _HOSTS if host not in hosts)])
    return {"no_proxy": value, "NO_PROXY": value}
