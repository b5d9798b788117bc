"""Protection of a port without keys from web pages: the headers Host and Origin.

A page on any site can make its visitors' browsers send requests to 127.0.0.1. The browser names the page in
`Origin`. If the page has rebound its own name to 127.0.0.1 (DNS rebinding, CVE-2024-28224 of Ollama), the
request counts as the page's own, but `Host` still has the page's name. So both headers are checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from ipaddress import ip_address

from utils.gateway.http_errors import ApiError
from utils.gateway.settings import GatewaySettings


def check_browser(headers: Mapping[str, str], settings: GatewaySettings) -> None:
    """Raise ApiError with status 403 if a port without keys should not answer these headers."""
    host = headers.get("host", "")
    if not _is_ours(_name(host), settings.hosts):
        raise _refused(
            f"This port has no keys, so it doesn't answer under the name {host[:100]!r}. "
            "Use localhost or its IP address, add the name to hosts, or use keys.",
            "host_not_allowed",
        )
    origin = headers.get("origin")
    if origin is None or origin in settings.cors_origins or "*" in settings.cors_origins:
        return
    if origin.partition("://")[2] != host:
        raise _refused(
            f"This port has no keys, so web pages of {origin[:100]!r} may not use it. "
            "Add the page's origin to cors_origins, or use keys.",
            "origin_not_allowed",
        )


def _name(host: str) -> str:
    """Return the name or address in a Host header, without the port and an IPv6 address's brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower().rstrip(".")


@lru_cache(maxsize=1024)
def _is_ours(name: str, names: tuple[str, ...]) -> bool:
    """Tell whether no other site can have this name. No DNS answer changes an IP address in `Host`."""
    if name in ("localhost", *names) or name.endswith(".localhost"):
        return True
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _refused(message: str, code: str) -> ApiError:
    return ApiError(403, message, kind="permission_error", code=code)
