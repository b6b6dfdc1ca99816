"""What is served, told as Envoy's /config_dump does, for istioctl proxy-config and people's jq lines. Never a key."""
