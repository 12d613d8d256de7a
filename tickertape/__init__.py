"""What a user imports: the client of a Tickertape server. It needs httpx and nothing else."""
