"""Where on an image the curvature is.

The diagonal of the GGN, summed over the neurons of the first layer, one number for each pixel. The darkest pixels are
0 in every image, so no weight on them has any effect: null directions that a rank has to count, not to guess.
"""

from matplotlib import pyplot as plt

import curvature as cv

problem = cv.zoo.digits_problem(500, widths=(8,))
diagonal = cv.diagonal(cv.ggn(problem)).value
first_layer = diagonal[: 8 * 64].reshape(8, 64).sum(axis=0)

figure, ax = plt.subplots(figsize=(4.6, 3.8))
image = ax.imshow(first_layer.reshape(8, 8), cmap="cividis")
figure.colorbar(image, label="curvature of the weights on a pixel")
ax.set(title="First layer of a digits network", xticks=[], yticks=[])
