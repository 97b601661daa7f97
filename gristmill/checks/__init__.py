"""Checks that data must pass before training is paid for."""

from gristmill.checks._old import Finding, check_dataset, require_no_errors

__all__ = ["Finding", "check_dataset", "require_no_errors"]
