"""What the agent shows: /metrics, /state, the page, the health endpoints."""
