"""Permissions and limits: API keys, with two token buckets and a limit of parallel requests for each."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from utils.gateway import bucket
from utils.gateway.http_errors import ApiError
from utils.gateway.settings import KeySettings

ANONYMOUS = "anonymous"
_KEY_BYTES = 32
RATE_HEADERS = [
    f"x-ratelimit-{name}-{what}"
    for what in ("requests", "tokens")
    for name in ("limit", "remaining", "reset")
]
_MOST_FAILURES = 10  # wrong keys that one address may send at once, and in a minute afterwards
_MOST_ADDRESSES = 10_000  # that are remembered; the one that failed longest ago is forgotten first


def new_key() -> tuple[str, str]:
    """Return a new API key and its SHA-256. 256 random bits need no slow hash: nobody can try them all."""
    key = "gw-" + secrets.token_urlsafe(_KEY_BYTES)
    return key, digest(key)


def digest(key: str) -> str:
    """SHA-256 of a key, in hexadecimal."""
    return hashlib.sha256(key.encode()).hexdigest()


class Caller:
    """One key, and the rest of its limits.

    Attributes:
        name: Name of the key.
        parallel: Number of its requests that are in the gateway now.
    """

    def __init__(self, name: str, settings: KeySettings | None, now: float) -> None:
        self.name = name
        self.parallel = 0
        self._max_parallel = None if settings is None else settings.max_parallel
        self._buckets: dict[str, bucket.Bucket] = {}
        if settings is not None:
            for what, limit in (
                ("requests", settings.requests_per_minute),
                ("tokens", settings.tokens_per_minute),
            ):
                self._buckets[what] = bucket.full(limit / 60, limit, now)

    def reserve(self, tokens: float, now: float) -> None:
        """Reserve one request, its place among the parallel ones, and `tokens`, the estimate of its tokens.

        Raises:
            ApiError: 429, with `Retry-After` if it is known when to come back. Then nothing is reserved.
        """
        if self._max_parallel is not None and self.parallel >= self._max_parallel:
            raise _too_many(
                f"The key {self.name!r} has {self.parallel} requests running, and may have "
                f"{self._max_parallel}. Send the next one when one has ended.",
                "parallel_limit_exceeded",
                1.0,
            )
        after: dict[str, bucket.Bucket] = {}
        for what, before in self._buckets.items():
            after[what], wait_s = bucket.take(before, 1.0 if what == "requests" else tokens, now)
            if wait_s > 0:
                raise _too_many(
                    f"The key {self.name!r} has used up its {what} per minute "
                    f"({before.capacity:g}). Try again in {wait_s:.1f} s.",
                    "rate_limit_exceeded",
                    wait_s,
                )
        self._buckets = after
        self.parallel += 1

    def refund(self, unused: float) -> None:
        """Give back a request's place and its unused tokens, or take more if `unused` is below 0."""
        self.parallel -= 1
        if "tokens" in self._buckets:
            self._buckets["tokens"] = bucket.refund(self._buckets["tokens"], unused)

    def rate_headers(self, now: float) -> list[tuple[bytes, bytes]]:
        """Return OpenAI's `x-ratelimit-*` headers; *reset* is the time until the bucket is full."""
        found = []
        for what, before in self._buckets.items():
            filled, _ = bucket.take(before, 0.0, now)
            reset_s = (filled.capacity - filled.level) / filled.rate
            for name, value in (
                ("limit", f"{filled.capacity:.0f}"),
                ("remaining", f"{max(0, int(filled.level))}"),
                ("reset", f"{reset_s:.3f}s"),
            ):
                found.append((f"x-ratelimit-{name}-{what}".encode(), value.encode()))
        return found


def _too_many(message: str, code: str, retry_after_s: float) -> ApiError:
    return ApiError(
        429,
        message,
        kind="rate_limit_error",
        code=code,
        outcome="rate_limited",
        retry_after_s=retry_after_s,
    )


class FailedKeys:
    """Addresses that sent wrong keys, each with a token bucket of failures.

    Only failures are slowed down. A right key is accepted from any address, because somebody behind the same
    proxy must not lock its owner out.
    """

    def __init__(self) -> None:
        self._buckets: OrderedDict[str, bucket.Bucket] = OrderedDict()

    def add(self, address: str, now: float) -> float:
        """Count a failure, and return the seconds for which the address should stay away."""
        before = self._buckets.pop(address, None)
        if before is None:
            before = bucket.full(_MOST_FAILURES / 60, _MOST_FAILURES, now)
        self._buckets[address], wait_s = bucket.take(before, 1.0, now)
        if len(self._buckets) > _MOST_ADDRESSES:
            self._buckets.popitem(last=False)
        return wait_s


class Authenticator:
    """All keys.

    Attributes:
        on_failure: Called with each wrong key's address.
    """

    def __init__(
        self,
        keys: Sequence[KeySettings],
        clock: Callable[[], float] = time.monotonic,
        on_failure: Callable[[str], None] = lambda address: None,
    ) -> None:
        self._clock = clock
        self._known: dict[KeySettings, Caller] = {}
        self.configure(keys)
        self._anonymous = Caller(ANONYMOUS, None, clock())
        self._failed = FailedKeys()
        self.on_failure = on_failure

    def identify(self, authorization: str | None, address: str) -> Caller:
        """Return the caller of a header `Authorization: Bearer KEY`.

        Every known key is compared, each in constant time, so the time that it takes tells nothing.

        Args:
            authorization: The header, or None if there is none.
            address: The client's IP address.

        Raises:
            ApiError: 401 if there is no key or it isn't known, 429 if the address sent too many wrong ones.
        """
        if not self._callers:
            return self._anonymous
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise _refused("This API needs a key: send the header Authorization: Bearer KEY.")
        presented = digest(key.strip())
        found = None
        for known, caller in self._callers:
            if hmac.compare_digest(known, presented):
                found = caller
        if found is not None:
            return found
        self.on_failure(address)
        if wait_s := self._failed.add(address, self._clock()):
            raise ApiError(
                429,
                f"Too many wrong keys came from {address}. Try again in {wait_s:.0f} s.",
                kind="rate_limit_error",
                code="too_many_wrong_keys",
                outcome="unauthorized",
                retry_after_s=wait_s,
            )
        raise _refused("This API key is not known. Is it complete, and of this gateway?")

    def configure(self, keys: Sequence[KeySettings]) -> None:
        """Take new keys. A key whose settings haven't changed keeps what it has used."""
        now, before = self._clock(), self._known
        self._known = {key: before.get(key) or Caller(key.name, key, now) for key in keys}
        self._callers = [(key.sha256, caller) for key, caller in self._known.items()]

    def reserve(self, caller: Caller, tokens: float) -> None:
        """Reserve a request now. Raises ApiError as `Caller.reserve` does."""
        caller.reserve(tokens, self._clock())

    def rate_headers(self, caller: Caller) -> list[tuple[bytes, bytes]]:
        """Return the `x-ratelimit-*` headers of a caller now; see `Caller.rate_headers`."""
        return caller.rate_headers(self._clock())


def _refused(message: str) -> ApiError:
    return ApiError(
        401, message, kind="authentication_error", code="invalid_api_key", outcome="unauthorized"
    )
