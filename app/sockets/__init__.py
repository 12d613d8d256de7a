"""Connections: where the server listens, what a peer may send, how much is on its way to one."""
