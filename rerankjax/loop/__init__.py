"""The self-training loop: where host stages and device code meet."""
