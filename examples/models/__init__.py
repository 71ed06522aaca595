"""Networks that more than one program trains."""
