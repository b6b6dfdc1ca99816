"""One HTTP request: which rule it meets, and what is done with it. Both dialects end here."""
