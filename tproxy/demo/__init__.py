"""``make demo``: two pods, one command. Each step shows what it runs, and asserts what it claims."""
