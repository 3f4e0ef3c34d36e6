"""Verdicts: what a program does, run where it can do no harm. Imports no JAX."""
