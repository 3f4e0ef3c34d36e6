"""The Llama-family decoder that generators and rerankers share."""
