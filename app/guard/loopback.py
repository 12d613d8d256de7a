"""Whether an address is this machine's own."""

from ipaddress import ip_address


def is_loopback(address: str) -> bool:
    """False for what is no address: a name, or none where the socket is of another kind."""
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False
