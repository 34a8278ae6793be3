"""Making an atlas: `describe` reads text once, `merge` puts atlases of several texts together."""

from gemscope.reports.describe.gather import DescribeConfig
from gemscope.reports.describe.merge import merge
from gemscope.reports.describe.run import describe

__all__ = ["DescribeConfig", "describe", "merge"]
