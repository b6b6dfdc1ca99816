"""What issues and decides for many pods: here the certificate authority; later the directory and the webhook.

``authority`` signs, ``state`` remembers, ``authenticate`` says who calls, ``issuer`` puts them in order. gRPC is spoken
by ``service`` and ``serving`` only.
"""
