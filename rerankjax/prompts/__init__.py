"""Prompts: problems as token ids."""
