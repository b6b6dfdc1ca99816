"""``make pod-demo`` and ``make kind-demo``: the manifests and the image in real containers."""
