"""Who may come in: addresses, tokens and origins."""

import hmac
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from unils_jax.errors import UserError

TOKEN_PREFIX = "token."  # of the sub-protocol that carries a token, for browsers
_TOKEN = re.compile(r"[A-Za-z0-9._~-]{16,256}")
_MAX_TOKEN_BYTES = 1 << 16


@dataclass(frozen=True)
class Access:
    """The rules of a server."""

    host: str  # that it listens on
    tokens: tuple[str, ...] = ()  # any of which lets a client in; (): none is asked for
    origins: tuple[str, ...] = ()  # of pages of other servers that may connect, `https://example.org`

    def token_is_right(self, headers: Headers, subprotocols: Sequence[str] = ()) -> bool:
        """Compares a client's token, in constant time, with those of the file."""
        scheme, _, given = headers.get("authorization", "").partition(" ")
        offered = [given.strip()] if scheme.lower() == "bearer" else []
        offered += [name.removeprefix(TOKEN_PREFIX) for name in subprotocols if name.startswith(TOKEN_PREFIX)]
        # Every pair is compared: the time says nothing of which one was close.
        matches = [hmac.compare_digest(a.encode(), b.encode()) for a in offered for b in self.tokens]
        return any(matches) or not self.tokens

    def origin_is_right(self, headers: Headers) -> bool:
        """Decides whether a browser's page may connect; programs send no origin."""
        origin = headers.get("origin")
        if origin is None or origin in self.origins:
            return True
        try:
            parts = urlsplit(origin)
            name = parts.hostname or ""
        except ValueError:
            return False
        if parts.scheme not in ("http", "https") or parts.netloc != headers.get("host"):
            return False
        # Without a token another site's name may have been pointed at this machine.
        return bool(self.tokens) or is_loopback(name) or name == self.host


def is_loopback(host: str) -> bool:
    """Decides whether only this machine reaches a host."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def make_access(host: str, token_file: str | None, origins: Sequence[str], insecure: bool) -> Access:
    """Builds the rules; a UserError where anyone could come in without that being said aloud."""
    tokens = () if token_file is None else _read_tokens(token_file)
    if not tokens and not insecure and not is_loopback(host):
        raise UserError(
            f"--host {host} is reached from other machines: give --token-file FILE, or --insecure to let anyone in"
        )
    for origin in origins:
        if not re.fullmatch(r"https?://[^/\s]+", origin):
            raise UserError(f"--allow-origin must be like https://example.org, without a path, got {origin!r}")
    return Access(host, tokens, tuple(origins))


def _read_tokens(path: str) -> tuple[str, ...]:
    try:
        data = Path(path).read_bytes()[: _MAX_TOKEN_BYTES + 1]
    except OSError as error:
        raise UserError(f"--token-file {path}: {error.strerror}; name a file with one token a line") from None
    lines = data.decode("utf-8", errors="replace").split()
    if len(data) > _MAX_TOKEN_BYTES or not lines or not all(_TOKEN.fullmatch(line) for line in lines):
        raise UserError(
            f"--token-file {path} must hold tokens of 16 to 256 letters, digits or ._~-, one a line; make one with "
            "python -c 'import secrets; print(secrets.token_urlsafe())'"
        )
    return tuple(lines)
