"""Proof of the cluster secret for an HTTP request to an operations endpoint, without the secret on the wire.

The header ``Authorization: Janus TIME:MAC`` holds the seconds since 1970 and the HMAC-SHA256, under the secret, of
method, path, time and the body's SHA-256. A request that was overheard can be repeated for a minute, not changed.
"""

from __future__ import annotations

import hashlib
import hmac

HEADER = "Authorization"
_SCHEME = "Janus "
#: Clocks of two machines may be this far apart.
_VALID_S = 60


def prove(secret: bytes, method: str, path: str, body: bytes, *, now: float) -> str:
    """Return the header's value. ``now`` is in seconds since 1970."""
    time = str(int(now))
    return f"{_SCHEME}{time}:{_mac(secret, method, path, body, time)}"


def problem_of(secret: bytes, method: str, path: str, body: bytes, header: str, *, now: float) -> str:
    """Return why a request's header proves nothing; empty when it proves the secret."""
    time, _, mac = header.removeprefix(_SCHEME).partition(":")
    if not header.startswith(_SCHEME) or not time.isascii() or not time.isdecimal() or len(time) > 12:
        return "this needs the cluster secret; use the janus command"
    if not hmac.compare_digest(mac.encode(), _mac(secret, method, path, body, time).encode()):
        return "the cluster secret is another one"
    if abs(now - int(time)) > _VALID_S:
        return f"the clocks are more than {_VALID_S} s apart, or the request was repeated"
    return ""


def _mac(secret: bytes, method: str, path: str, body: bytes, time: str) -> str:
    text = "\n".join(("janus-http", method, path, time, hashlib.sha256(body).hexdigest()))
    return hmac.new(secret, text.encode(), "sha256").hexdigest()
