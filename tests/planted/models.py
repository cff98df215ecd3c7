"""Defects in the losses, the layout of the parameters, the problem and the layers."""

from planted import Defect

DEFECTS = [
    Defect(
        "softmax without its rank-one term, in the factor",
        "models:CrossEntropy.hessian_factor",
        "$columns[:, :, None] * -$kept[:, None]",
        "$columns[:, :, None] * -0.0 * $kept[:, None]",
        ("linear_models_have_the_hessian_on_paper",),
    ),
    Defect(
        "softmax without its rank-one term, in products",
        "models:CrossEntropy.hessian_product",
        "$s = $rows - $of_likeliest\nreturn $s.sub_(($s * $p).sum(dim=2, keepdim=True)).mul_($scaled)",
        "return $rows * $scaled",
        ("linear_models_have_the_hessian_on_paper",),
    ),
    Defect(
        "wrong denominator with class weights",
        "models:CrossEntropy.denominators",
        "self._class_weights($outputs)[$labels] * $valid",
        "$valid.to($outputs)",
        ("matrices_add_over_any_split_with_the_weights_of_its_parts",),
    ),
    Defect(
        "smoothing that forgets the class weights",
        "models:CrossEntropy._label_mass",
        "$of_label + $smoothing * $weights.mean()",
        "$of_label + $smoothing",
        ("every_matrix_of_a_random_network_is_that_of_torch_func",),
    ),
    Defect(
        "half of the curvature of the logistic loss",
        "models:BinaryCrossEntropy.second_derivative",
        "torch.sigmoid($f) * torch.sigmoid(-$f)",
        "torch.sigmoid($f) * torch.sigmoid(-$f) / 2",
        ("linear_models_have_the_hessian_on_paper",),
    ),
    Defect(
        "Monte Carlo scores of the wrong variance",
        "models:CrossEntropy.sampled_factor",
        "($mass / $count).sqrt()",
        "($mass / ($count + 1)).sqrt()",
        ("monte_carlo_fisher_is_unbiased",),
    ),
    Defect(
        "rows along another axis put back in the wrong order",
        "layout:Entry.from_rows",
        "$tensor.movedim(0, self.norm_axis)",
        "$tensor",
        ("every_chart_passes_through_the_point",),
    ),
    Defect(
        "neurons of a transposed convolution along the wrong axis",
        "layout:Layout",
        "$indices.movedim($entry.neuron_axis, 0)",
        "$indices",
        ("neurons_of_a_transposed_convolution_are_its_output_channels",),
    ),
    Defect(
        "unweighted batch mean",
        "models:Problem.chunk_loss",
        "self.loss.terms($outputs, $targets).sum() / self.denominator",
        "self.loss.terms($outputs, $targets).mean() / len(list(self.chunks()))",
        ("every_matrix_of_a_random_network_is_that_of_torch_func",),
    ),
    Defect(
        "gradient of the last chunk instead of the sum",
        "models:Problem.gradient",
        "$total += self._chunk_gradient($$arguments)",
        "$total = self._chunk_gradient($$arguments)",
        ("every_matrix_of_a_random_network_is_that_of_torch_func",),
    ),
    Defect(
        "fused weight norm differentiated twice",
        "models:_parametrized_weight_norm",
        "[isinstance($step, _WeightNorm) for $step in $chain]",
        "[False for $step in $chain]",
        ("hessian_equals_differences_of_the_first_derivative_of_pytorch",),
    ),
    Defect(
        "patches without their stride",
        "models:_patches",
        "functional.unfold($inputs, $kernel, $dilation, $padding, $stride)",
        "functional.unfold($inputs, $kernel, $dilation, $padding, 1)",
        ("patches_times_weights_are_the_outputs_of_the_layer",),
    ),
]
