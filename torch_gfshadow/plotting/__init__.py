"""Pictures of records: the paper's Figure 1 with an error bar, and the curvature it argues about.

``figures`` puts the panels of ``panels`` side by side, ``series`` reads the records for them, and
``style`` holds what all pictures share.
"""

from torch_gfshadow.plotting.figures import figure1, plot_records
from torch_gfshadow.plotting.series import Curve
from torch_gfshadow.plotting.style import require_matplotlib

__all__ = ["Curve", "figure1", "plot_records", "require_matplotlib"]
