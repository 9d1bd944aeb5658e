"""What one rank holds, by the number of ranks."""
