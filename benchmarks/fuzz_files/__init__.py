"""Files that were changed since they were written, and what becomes of who reads them."""
