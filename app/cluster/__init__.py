"""Replicas of the service on Ray Serve: deploy, route, scale."""
