"""From candidates to verdicts: programs with their tests, executed in the sandbox."""
