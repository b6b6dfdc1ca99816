"""The images, with a registry or without; ``make image``. Nothing here runs in a pod."""
