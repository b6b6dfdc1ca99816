"""What issues and decides for many pods: the certificate authority and the directory; later the webhook.

``authority`` signs, ``state`` remembers, ``authenticate`` says who calls, ``issuer`` orders them; ``watch`` follows
Kubernetes, ``feed`` says what changed. gRPC is spoken by ``service``, ``directory`` and ``serving`` only.
"""
