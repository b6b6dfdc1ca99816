"""Istio's dialect: Gateway, VirtualService, DestinationRule, Telemetry, read into listeners."""
