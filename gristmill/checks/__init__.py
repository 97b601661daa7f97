"""Checks that data must pass before training is paid for.

    evidence                          what is measured, as plain data
    gather, content, contamination    how it is measured
    remedies                          what other settings would give
    about_*, registry, catalogue      the checks: pure functions of evidence; their list
    validate, page                    all of it, and its page

docs/checks.md says of each check why it matters, how it is computed and how to silence it.
"""

from gristmill.checks.catalogue import Report, catalogue, require_no_errors, run_checks
from gristmill.checks.evidence import Evidence
from gristmill.checks.finding import Finding, Remedy
from gristmill.checks.validate import validate

__all__ = ["Evidence", "Finding", "Remedy", "Report", "catalogue", "require_no_errors", "run_checks", "validate"]
