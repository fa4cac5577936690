"""What of this machine a run would stumble over: each check is a `Finding`, and none can hang."""

from polopt.doctor.examine import examine
from polopt.doctor.finding import Finding, Mark

__all__ = ["Finding", "Mark", "examine"]
