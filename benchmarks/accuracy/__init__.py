"""Accuracy: parareal networks against the originals they were made from."""
