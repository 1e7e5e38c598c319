"""Bodies and query strings: bytes to typed values."""
