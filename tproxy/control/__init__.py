"""What issues and decides for many pods: here the certificate authority; later the directory and the webhook."""
