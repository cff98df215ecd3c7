"""Every claim of a study on one axis.

One row for each claim: the estimate as a factor, with its 95 % interval. Left of the shaded band weight norm is
better by more than 10 %, right of it worse by more than 10 %; claims that are not ratios have their number in words. A
filled circle is supported, a square too small to count, a triangle the opposite of the claim, an open circle
undecided.
"""

from curvature.report.drawings.claims import draw_claims
from small_study import study

figure = draw_claims(study).figure
