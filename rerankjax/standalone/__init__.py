"""Rerankers without the loop: trained on any labelled data, and compared with other rerankers."""
