"""A run's directory, hosts, checkpoints and metrics: what every stage is written with."""
