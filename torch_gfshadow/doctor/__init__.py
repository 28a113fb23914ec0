"""Doctor: run every self-check on the user's own model before a long run depends on it.

Read next: ``examination`` (the checks, in order), ``really`` (the referee they are held against).
"""

from torch_gfshadow.doctor.examination import diagnose as diagnose
from torch_gfshadow.doctor.findings import Diagnosis as Diagnosis
from torch_gfshadow.doctor.findings import Finding as Finding
from torch_gfshadow.doctor.setup import load_factory as load_factory
