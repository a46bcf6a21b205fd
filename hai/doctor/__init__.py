"""What this machine can do, what is in the way of a run and how to mend it, and what fits on which card."""

from hai.doctor.diagnosis import Diagnosis, diagnose
from hai.doctor.findings import Finding

__all__ = ["Diagnosis", "Finding", "diagnose"]
