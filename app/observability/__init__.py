"""What operators see: logs, metrics, traces, the operations page."""
