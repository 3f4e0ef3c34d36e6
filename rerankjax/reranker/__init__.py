"""The reranker: a reward model over (prompt, completion), and its Bradley-Terry training."""
