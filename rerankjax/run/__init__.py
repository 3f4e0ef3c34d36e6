"""A run's directory, hosts, checkpoints and metrics, which every stage uses."""
