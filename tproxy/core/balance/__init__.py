"""Which of a backend's endpoints: by a key, by a session, and not by those that fail. Pure values and decisions."""
