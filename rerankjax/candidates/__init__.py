"""Candidates: sampled solutions of a problem."""
