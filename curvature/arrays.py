"""Kinds of array for annotations: ``Float[Tensor, "dim columns"]`` is a floating-point tensor with these two axes.

A kind is ``Annotated``: to Python and to a type checker the annotation is a plain ``Tensor``. While the tests run,
jaxtyping's kinds of the same names take their place (``tests/typed.py``). Then an array of another kind or shape fails,
and so do two arrays of one call, or two fields of one record, whose axes of the same name differ in size. ``...`` means
any number of axes, ``*name`` the same axes wherever it is repeated, and ``_`` an axis of any size.

===========  =========================================================================================================
axis         what it counts
===========  =========================================================================================================
dim          coordinates of a matrix: its rows and columns, the length of a vector that it multiplies
weights      weights of a model, where the coordinates of a chart may be others
coordinates  new coordinates after a linear map of the old ones
block        coordinates of a principal block
columns      vectors side by side
values       some eigenvalues or singular values; ``smallest`` and ``largest`` at the two ends, ``ritz`` in between
null         vectors that span a null space
width        columns of a factor ``B`` of ``A = B B^T``
examples     examples of a data set or of a batch
inputs       numbers in one example; ``hidden`` units, ``outputs`` of the model or of a layer
probes       random vectors of an estimator
steps        products with a probe, or evaluations during training
points       arguments of a function; ``grid`` those in several ``directions``, one axis for each
edges        edges of the bins of a histogram
numel        numbers in one named tensor; its ``rows`` are what weight normalization normalizes, of one ``length``
rates        learning rates
seeds        repetitions of a study; ``sources`` of a difference, ``claims`` that it tests
===========  =========================================================================================================
"""

from typing import Annotated as Bool
from typing import Annotated as Float
from typing import Annotated as Float64
from typing import Annotated as Int
from typing import Annotated as Num
from typing import Annotated as Shaped

__all__ = ["Bool", "Float", "Float64", "Int", "Num", "Shaped"]
