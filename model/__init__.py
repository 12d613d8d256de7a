"""The machine: token ids in, token ids out. No web, no asyncio."""
