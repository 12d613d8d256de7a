"""The banner: what a person at a terminal reads when the model is ready."""

from model.protocol.messages import Ready

# Addresses that mean every address of this machine; a browser needs one of them.
_EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def address_of(host: str, port: int) -> str:
    """The URL under which this machine reaches the server."""
    name = _EVERY_ADDRESS.get(host, host)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def banner(model: str, url: str, ready: Ready) -> str:
    """Addresses first, then how the model is computed."""
    rows = [
        ("Chat", url),
        ("Dashboard", f"{url}/dash"),
        ("API docs", f"{url}/docs"),
        ("OpenAI", f"base_url={url}/v1  model={model}"),
        ("Precision", f"{ready.dtype} on {ready.device}, {_threads(ready.threads)}"),
        ("Context", f"{ready.max_model_len:,} tokens"),
        ("KV cache", f"{ready.kv_tokens:,} tokens in {ready.kv_bytes / 2**20:,.0f} MiB"),
    ]
    lines = [f"  {label:<11}{value}" for label, value in rows]
    title = f"  {model} is ready after {ready.load_seconds:.1f} s. Ctrl-C ends the server."
    return "\n".join(["", title, "", *lines, ""])


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"
