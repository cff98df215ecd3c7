"""The study behind several figures: two arms, three paired seeds, a network 64-6-10 on 300 digits.

It takes ten to twenty seconds on one core; `curvature compare` does the same on the command line.
"""

import curvature as cv


def build(seed):
    return cv.zoo.digits_problem(300, widths=(6,), seed=seed)


study = cv.study(build, num_seeds=3, epochs=10, progress=False)
