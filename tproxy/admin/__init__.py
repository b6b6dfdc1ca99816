"""What a person or Prometheus asks a running sidecar: health, metrics, the effective configuration."""
