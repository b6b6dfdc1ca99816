"""Gateway API's dialect: its objects, read into listeners and statuses."""
