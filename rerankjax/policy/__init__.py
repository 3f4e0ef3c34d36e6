"""The policy: supervised fine-tuning and PPO."""
