"""The client's way to its server: the address as users write it, and what the environment says.

A server on this machine is reached directly. For others httpx follows HTTP_PROXY, HTTPS_PROXY,
ALL_PROXY, NO_PROXY and SSL_CERT_FILE. What is wrong with any of these is a ValueError of one line.
"""

import re
import ssl
from ipaddress import ip_address
from urllib.request import getproxies

import httpx

# Three of the server's pings may be missed before silence counts as a lost connection.
TIMEOUT = httpx.Timeout(connect=5.0, read=45.0, write=30.0, pool=None)
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=100)


def connect(url: str, api_key: str | None) -> httpx.AsyncClient:
    """Raises ValueError for an address, a key or an environment that cannot be used."""
    base = base_url(url)
    headers = authorization(api_key)
    local = is_loopback(base.host)
    try:
        # With a transport of its own httpx looks for no proxy. Only TLS needs certificates.
        transport = httpx.AsyncHTTPTransport(limits=_LIMITS, trust_env=base.scheme == "https")
        return httpx.AsyncClient(
            base_url=base,
            headers=headers,
            timeout=TIMEOUT,
            limits=_LIMITS,
            transport=transport if local else None,
        )
    except (OSError, ssl.SSLError) as error:
        raise ValueError(
            f"the certificates of SSL_CERT_FILE or SSL_CERT_DIR cannot be read ({error}); "
            "correct the variable, or unset it"
        ) from None
    except (ValueError, ImportError, httpx.InvalidURL) as error:
        raise ValueError(
            f"the proxy in {_proxy_variables()} cannot be used ({error}); correct the variable, or "
            "unset it"
        ) from None


def base_url(url: str) -> httpx.URL:
    """The address of a server; without a scheme it is http. Raises ValueError."""
    written = url.strip()
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", written):
        written = f"http://{written}"
    try:
        parsed = httpx.URL(written)
    except httpx.InvalidURL as error:
        raise ValueError(f"{url!r} is no address ({error}); {_LIKE}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host or (parsed.port or 0) > 65535:
        raise ValueError(f"{url!r} is no address of a server; {_LIKE}")
    return parsed


_LIKE = "give one such as http://127.0.0.1:8000"


def is_loopback(host: str) -> bool:
    """127.0.0.0/8, ::1, and what stands for them: never by a proxy."""
    try:
        address = ip_address(host)
    except ValueError:  # a name; RFC 6761, 6.3
        return host.rstrip(".").lower().rpartition(".")[2] == "localhost"
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified


def authorization(api_key: str | None) -> dict[bytes, bytes]:
    """The header for a key, as UTF-8: servers compare bytes. Raises ValueError."""
    key = (api_key or "").strip()
    if not key:
        return {}
    if not all(character.isprintable() or "\udc80" <= character <= "\udcff" for character in key):
        raise ValueError("the API key has a control character in it; give it as one line of text")
    return {b"Authorization": b"Bearer " + key.encode("utf-8", "surrogateescape")}


def proxy_of(url: httpx.URL) -> str | None:
    """The variables that may have led to a proxy on the way to `url`."""
    if is_loopback(url.host) or not getproxies().keys() - {"no"}:
        return None
    return _proxy_variables()


def _proxy_variables() -> str:
    """Those that are set: urllib knows them by what is before `_PROXY`."""
    return ", ".join(sorted(f"{name.upper()}_PROXY" for name in getproxies()))
