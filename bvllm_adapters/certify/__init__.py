"""Certification: the contract of a host, run end to end on one of its models.

`bvllm hosts --certify NAME` does it from a shell; integrators call it in their own tests:

    from bvllm_adapters.certify import certify
    certify(model, processor).raise_for_failures()

A check is a function of a `Subject`; those of one matter stand in one file. It may import all but
the commands.
"""

from bvllm_adapters.certify.report import Check, NotApplicable, Outcome, Report
from bvllm_adapters.certify.run import CHECKS, certify, certify_class

__all__ = [
    "CHECKS",
    "Check",
    "NotApplicable",
    "Outcome",
    "Report",
    "certify",
    "certify_class",
]
