"""Who may ask, and how much: API keys, and two token buckets for each."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Sequence

from utils.gateway import bucket
from utils.gateway.http_errors import ApiError
from utils.gateway.settings import KeySettings

ANONYMOUS = "anonymous"
_KEY_BYTES = 32


def new_key() -> tuple[str, str]:
    """A new API key and its SHA-256. 256 random bits need no slow hash: nobody can try them all."""
    key = "gw-" + secrets.token_urlsafe(_KEY_BYTES)
    return key, digest(key)


def digest(key: str) -> str:
    """SHA-256 of a key, in hexadecimal."""
    return hashlib.sha256(key.encode()).hexdigest()


class Caller:
    """One key, and what it may still use."""

    def __init__(self, name: str, settings: KeySettings | None, now: float) -> None:
        self.name = name
        self._buckets: dict[str, bucket.Bucket] = {}
        if settings is not None:
            for what, limit in (
                ("requests", settings.requests_per_minute),
                ("tokens", settings.tokens_per_minute),
            ):
                self._buckets[what] = bucket.full(limit / 60, limit, now)

    def reserve(self, tokens: float, now: float) -> None:
        """Reserve one request and `tokens`, the estimate of its tokens.

        Raises:
            ApiError: 429 with `Retry-After`; then nothing is reserved.
        """
        after: dict[str, bucket.Bucket] = {}
        for what, before in self._buckets.items():
            after[what], wait_s = bucket.take(before, 1.0 if what == "requests" else tokens, now)
            if wait_s > 0:
                raise ApiError(
                    429,
                    f"The key {self.name!r} has used up its {what} per minute "
                    f"({before.capacity:g}). Try again in {wait_s:.1f} s.",
                    kind="rate_limit_error",
                    code="rate_limit_exceeded",
                    outcome="rate_limited",
                    retry_after_s=wait_s,
                )
        self._buckets = after

    def refund(self, unused: float) -> None:
        """Refund tokens that were reserved but not used, or take more if `unused` is below 0."""
        if "tokens" in self._buckets:
            self._buckets["tokens"] = bucket.refund(self._buckets["tokens"], unused)


class Authenticator:
    """All keys."""

    def __init__(
        self, keys: Sequence[KeySettings], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._known: dict[KeySettings, Caller] = {}
        self.configure(keys)
        self._anonymous = Caller(ANONYMOUS, None, clock())

    def identify(self, authorization: str | None) -> Caller:
        """The caller of a header `Authorization: Bearer KEY`.

        Every known key is compared, each in constant time: how long it takes tells nothing.

        Raises:
            ApiError: 401: none given, or not known.
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
        if found is None:
            raise _refused("This API key is not known. Is it complete, and of this gateway?")
        return found

    def configure(self, keys: Sequence[KeySettings]) -> None:
        """Take new keys. A key whose settings haven't changed keeps what it has used."""
        now, before = self._clock(), self._known
        self._known = {key: before.get(key) or Caller(key.name, key, now) for key in keys}
        self._callers = [(key.sha256, caller) for key, caller in self._known.items()]

    def reserve(self, caller: Caller, tokens: float) -> None:
        """Reserve a request now. Raises ApiError as `Caller.reserve` does."""
        caller.reserve(tokens, self._clock())


def _refused(message: str) -> ApiError:
    return ApiError(
        401, message, kind="authentication_error", code="invalid_api_key", outcome="unauthorized"
    )
