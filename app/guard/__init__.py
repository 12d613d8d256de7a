"""What is refused before it costs anything: hosts, keys, rates, malformed JSON."""
