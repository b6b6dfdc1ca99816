"""Every byte of many connections through real sidecars, whatever happens to them."""
