"""Iterative self-training for code generation via reinforced re-ranking, in JAX."""
