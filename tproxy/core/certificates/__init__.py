"""What is read from certificates, and when they are renewed; handshakes and files are elsewhere."""
