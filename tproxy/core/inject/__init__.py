"""A pod in, a JSON Patch out: what the webhook and ``tproxy inject`` do, and what the sidecar must know of it."""
