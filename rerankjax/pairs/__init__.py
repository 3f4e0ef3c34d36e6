"""Pairs: executed candidates as preferences to learn from."""
