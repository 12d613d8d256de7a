"""Where tapes are kept: in this process, or in Redis for any replica."""
