"""Who may ask, and whose tapes are whose: decided before anything is parsed."""

import hashlib
import hmac
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fastapi import Header

from app.errors import APIError


@dataclass(frozen=True, slots=True)
class ApiKeys:
    """The keys that clients may use, as SHA-256 digests. Without any, everybody may."""

    digests: tuple[bytes, ...] = ()

    @classmethod
    def read(cls, path: Path) -> "ApiKeys":
        """From a file with one key a line; empty lines and those that begin with # do not count.

        Raises OSError, and ValueError when there is no key in it: nobody means to lock out all.
        """
        lines = (line.strip() for line in path.read_bytes().splitlines())
        keys = [line for line in lines if line and not line.startswith(b"#")]
        if not keys:
            raise ValueError(f"{path} holds no key")
        return cls(tuple(hashlib.sha256(key).digest() for key in keys))

    def owner(self, key: bytes | None) -> str:
        """Whose tapes the bearer of `key` makes and may read; "" where there are no keys.

        Compared in constant time, over bytes. Raises APIError 401.
        """
        if not self.digests:
            return ""
        digest = hashlib.sha256(key or b"").digest()
        if not sum(hmac.compare_digest(digest, known) for known in self.digests):
            raise APIError(
                401,
                "send a key of this server as 'Authorization: Bearer <key>'",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return digest.hex()[:16]


async def refuse_cross_site(sec_fetch_site: Annotated[str | None, Header()] = None) -> None:
    """Refuse a GET that starts work when another site's page makes the browser send it.

    Raises APIError 403 on `Sec-Fetch-Site: cross-site` (W3C Fetch Metadata). Programs that are
    no browsers do not send the header.
    """
    if sec_fetch_site == "cross-site":
        raise APIError(
            403,
            "GET /generate is not for other sites' pages; use POST",
            code="cross_site",
        )
