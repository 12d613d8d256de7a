"""Who may ask, and whose tapes are whose: decided before anything is parsed."""

import codecs
import hashlib
import hmac
import json
import logging
import re
from pathlib import Path
from typing import Annotated

from fastapi import Header

from app.errors import APIError

logger = logging.getLogger("tickertape.security")

# What was copied from a header with its key.
_SCHEME = re.compile(rb"^(authorization:\s*)?bearer(\s+|$)", re.IGNORECASE)
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")


class ApiKeys:
    """The keys that clients may use, as a file has them at this moment. Without one, everybody may.

    Raises OSError, and ValueError when there is no key in it: nobody means to lock out all.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._digests: tuple[bytes, ...] = ()
        self._version: object = None
        if path:
            self._version = _version(path)
            self._digests = _digests(path)

    @property
    def wanted(self) -> bool:
        return self._path is not None

    def owner(self, key: bytes | None) -> str:
        """Whose tapes the bearer of `key` makes and may read; "" where there are no keys.

        Compared in constant time, over bytes. Raises APIError 401.
        """
        if self._path is None:
            return ""
        self._reread(self._path)
        digest = hashlib.sha256(key or b"").digest()
        if not sum(hmac.compare_digest(digest, known) for known in self._digests):
            raise APIError(
                401,
                "send a key of this server as 'Authorization: Bearer <key>'",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return digest.hex()[:16]

    def _reread(self, path: Path) -> None:
        """Take over what has changed; a file that is no good now is told of once, and ignored."""
        version = _version(path)
        if version == self._version:
            return
        self._version = version
        try:
            self._digests = _digests(path)
        except (OSError, ValueError) as error:
            logger.error("%s; mend the file, until then the keys stay as they were", error)
        else:
            logger.info("%s has changed: %d keys", path, len(self._digests))


def _version(path: Path) -> object:
    """Something that is another when the file is: 2 us."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def _digests(path: Path) -> tuple[bytes, ...]:
    """SHA-256 of one key a line; empty lines and those that begin with # do not count.

    Raises OSError, and ValueError for a file without a key, or with one that no header can carry.
    """
    content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    if not (encoding := json.detect_encoding(content)).startswith("utf-8"):
        raise ValueError(f"{path} is {encoding.upper()}; save it as UTF-8")
    keys = []
    for number, line in enumerate(content.splitlines(), 1):
        key = _SCHEME.sub(b"", line.strip())
        if _CONTROL.search(key):
            raise ValueError(f"line {number} of {path} has a control character in its key")
        if key and not key.startswith(b"#"):
            keys.append(key)
    if not keys:
        raise ValueError(f"{path} holds no key")
    return tuple(hashlib.sha256(key).digest() for key in keys)


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
