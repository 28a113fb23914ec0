"""The report: what runs showed, in words, tables and figures, as one self-contained HTML file.

``runs`` reads the records, ``findings`` and ``causes`` say what happened and why, ``figures``,
``spectrum`` and ``limits`` draw it, ``tables`` lists it, and ``page`` puts it together.
"""

from torch_gfshadow.report.findings import find as find
from torch_gfshadow.report.page import can_report as can_report
from torch_gfshadow.report.page import render as render
from torch_gfshadow.report.page import require_report as require_report
from torch_gfshadow.report.page import write_report as write_report
from torch_gfshadow.report.runs import Run as Run
from torch_gfshadow.report.runs import load_runs as load_runs
from torch_gfshadow.report.runs import run_of as run_of
