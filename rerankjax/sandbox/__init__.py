"""Verdicts: what a program does, run where it can do no harm. Imports no JAX."""

from rerankjax.sandbox.pool import check, run
from rerankjax.sandbox.verdict import Control, Limits, Program, Result, SandboxError, Verdict

__all__ = ["Control", "Limits", "Program", "Result", "SandboxError", "Verdict", "check", "run"]
