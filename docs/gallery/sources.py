"""Where a difference comes from.

The condition number of the network that was trained with weight norm over that of the standard one (diamond), as a
product of its sources. The one that is farthest from 1 is where the difference comes from.
"""

from curvature.report.drawings.claims import draw_sources
from small_study import study

figure = draw_sources(study).figure
