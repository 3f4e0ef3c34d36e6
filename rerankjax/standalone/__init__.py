"""Rerankers without the loop: trained on anyone's labelled data, and measured beside others."""
