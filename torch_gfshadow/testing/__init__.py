"""The kit for plugin authors: make records, isolate plugins, and hold each family to its contract.

Needs no test runner: every ``assert_…`` raises AssertionError with a sentence. With pytest,
``-p torch_gfshadow.testing.fixtures`` adds fixtures. The built-in families pass the same suites.
"""

from torch_gfshadow.testing.bounds import assert_bound_sound as assert_bound_sound
from torch_gfshadow.testing.checking import Check as Check
from torch_gfshadow.testing.checking import check_package as check_package
from torch_gfshadow.testing.closed_form import ClosedForm as ClosedForm
from torch_gfshadow.testing.closed_form import closed_forms as closed_forms
from torch_gfshadow.testing.flows import assert_flow_is_limit as assert_flow_is_limit
from torch_gfshadow.testing.inert import assert_hooks_valid as assert_hooks_valid
from torch_gfshadow.testing.inert import assert_inert as assert_inert
from torch_gfshadow.testing.inits import assert_init_balanced as assert_init_balanced
from torch_gfshadow.testing.inits import assert_init_contract as assert_init_contract
from torch_gfshadow.testing.inits import assert_init_scales as assert_init_scales
from torch_gfshadow.testing.isolation import isolated_plugins as isolated_plugins
from torch_gfshadow.testing.loggers import assert_logger_contract as assert_logger_contract
from torch_gfshadow.testing.probes import assert_probe_contract as assert_probe_contract
from torch_gfshadow.testing.probes import quadratic_point as quadratic_point
from torch_gfshadow.testing.records import hostile_records as hostile_records
from torch_gfshadow.testing.records import make_record as make_record
from torch_gfshadow.testing.runs import toy_run as toy_run
from torch_gfshadow.testing.solvers import assert_solver_contract as assert_solver_contract
