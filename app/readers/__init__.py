"""One reader of one tape as an HTTP response, and how readers share the event loop."""
