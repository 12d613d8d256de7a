"""What crosses the process boundary. Free of torch."""
