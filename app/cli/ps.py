"""`tickertape ps`: the tapes of a running server."""

from typing import Any

from app.cli.options import ApiKey, ServerUrl
from app.cli.terminal import note, print_table, run
from tickertape import Client

_HEAD = ("TAPE", "STATUS", "PROMPT", "TOKENS", "TOKENS/S", "READERS", "AGE")


def ps(url: ServerUrl = "127.0.0.1:8000", api_key: ApiKey = None) -> None:
    """List a running server's tapes: those that run, and those that ended just now."""
    run(_ps(url, api_key))


async def _ps(url: str, api_key: str | None) -> None:
    async with Client(url, api_key=api_key, max_retries=0) as client:
        about, seen = await client.version(), await client.operations()
    sample = seen["sample"]
    print_table(_HEAD, [_row(tape) for tape in seen["tapes"]])
    if more := seen["tapes_left_out"]:
        note(f"and {more} more")
    note(
        f"{about['model']}: engine {sample['engine']}, {sample['running']} running, "
        f"{sample['waiting']} waiting, {sample['paused']} paused, "
        f"{sample['tokens_per_second']:.0f} tokens/s, KV blocks {sample['kv_blocks_used']} of "
        f"{sample['kv_blocks_total']}"
    )


def _row(tape: dict[str, Any]) -> tuple[str, ...]:
    rate = tape["tokens_per_second"]
    return (
        tape["tape"],
        f"{tape['status']} ({tape['finish_reason']})" if tape["finish_reason"] else tape["status"],
        str(tape["prompt_tokens"]),
        str(tape["completion_tokens"]),
        "-" if rate is None else f"{rate:.0f}",
        str(tape["readers"]),
        f"{tape['age_s']:.0f} s",
    )
