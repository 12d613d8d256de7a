"""The service: HTTP in, events out. It never imports torch."""
