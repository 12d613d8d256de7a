"""The native dialect: /generate and /v1/tapes."""
