"""Bugs between the image files and the clipped sum."""

from __future__ import annotations

from .edits import bug, bugs

PAIRS = "tests/privacy/test_neighbours.py::test_one_image_changes_the_sum_by_at_most_the_sensitivity_and_nothing_else"
SERVED = "tests/privacy/test_served_units.py::"
ENGINES = "tests/gradients/test_engines.py::"
LAYERS = "tests/gradients/test_rules.py::"
FOLDED = "tests/gradients/test_folded.py::"
DATA = "tests/detection/test_data.py::"
CLIPS = "tests/privacy/test_clipping.py::"
GROUPS = "tests/gradients/test_clip_rules.py::test_one_example_moves_the_sum_by_at_most_the_sensitivity"
RULES = "tests/privacy/test_neighbours.py::test_every_clip_rule_on_every_engine_holds_its_own_sensitivity"

_FACTORS = "(self.clip_norm * ROUNDING / norms).clamp(max=1.0)"
_WEIGHTS = "dptrain.privacy.clip_rules:FlatClip.weights"
_OUTSIDE = "tests/privacy/test_outside_clip.py::"
_COUPLING = "dptrain.gradients.checks:refuse_coupling"
_NORMS = "dptrain.detection.model:_replace_norms"
BF16 = "tests/detection/test_precision.py::"
_LARGEST = ENGINES + "test_no_example_adds_more_than_the_clip_norm"

GRADIENT_BUGS = (
    # clipping
    bug(
        "no clip",
        "The factors are computed and never used: every gradient enters the sum as it is.",
        _WEIGHTS, _FACTORS, "norms.new_ones(norms.shape)",
        PAIRS, _LARGEST,
    ),
    bug(
        "clip after the sum",
        "The sum of a physical batch is clipped, not each image's gradient.",
        "dptrain.gradients:clipped_gradient_sum",
        "batch, weigh, rule.groups, own)",
        "batch, lambda s: (s == s).double(), None, own)\n"
        "    norm = sum(float(t.double().square().sum()) for t in total.values()) ** 0.5\n"
        "    total = {name: t * min(1.0, rule.sensitivity() / max(norm, 1e-30)) for name, t in total.items()}",
        PAIRS, ENGINES + "test_networks_that_are_no_detectors",
    ),
    bug(
        "every layer clipped by itself",
        "Each layer's part is scaled to the clip norm, so that the whole is the root of the number of layers too long.",
        "dptrain.gradients.fused:_weighted",
        "drop(piece).weighted_sum(weights[:, k])", "drop(piece).weighted_sum(weigh(piece.squared_norms()))",
        _LARGEST, ENGINES + "test_networks_that_are_no_detectors",
    ),
    bug(
        "centred by the batch",
        "A convolution is centred by a mean over the images in the batch, so each moves the others' gradients.",
        "dptrain.gradients.rules.conv:centre",
        "module.input_mean.to(gradient.dtype)", "gradient.flatten(3).mean((0, 1, 3)).repeat(module.groups)",
        LAYERS + "test_centred_convolutions",
    ),
    bug(
        "the shift of a centred layer is not released",
        "Stock weights leave out what centring moved: their function is not the one that was trained.",
        "dptrain.detection.model:stock_copy",
        "module.bn.running_mean -= shift", "pass",
        "tests/detection/test_centring.py::test_the_weights_that_are_released_are_stock",
    ),
    bug(
        "scales left out of the norm",
        "Scaled clipping: the norm is taken before the layers are scaled, and what is released after.",
        "dptrain.privacy.clip_rules:ScaledClip.weights",
        "(squared * scales.square())", "squared",
        GROUPS, RULES,
    ),
    bug(
        "scales of private images",
        "Nobody looks whether a private image is among those that the scales were measured on.",
        "dptrain.run.scales:_by_file",
        "declared.refuse_training(train)", "pass",
        "tests/run/test_job.py::"
        "test_scales_without_public_images_or_from_private_ones_are_refused_before_anything_is_written",
    ),
    bug(
        "scales measured anew",
        "A resumed run measures its scales with the weights that it has by then, which private images moved.",
        "dptrain.run.scales:settle_clipping",
        "config.resume and", "False and",
        "tests/run/test_job.py::test_the_scales_of_a_run_are_of_public_images_stated_and_found_again",
        "tests/run/test_scales.py::test_a_resumed_run_keeps_its_scales_whatever_became_of_the_val_labels",
    ),
    bug(
        "scales of the training split",
        "The scales are measured on the images at hand, which are the private ones.",
        "dptrain.run.scales:settle_clipping",
        "loss_settings(config)), images)",
        'loss_settings(config)), DetectionDataset(data, "train", config.imgsz))',
        "tests/run/test_scales.py::test_no_training_image_changes_a_scale",
    ),
    bug(
        "scales of a val image that trains by now",
        "A resumed run keeps its scales, and does not ask whether the images behind them are those that it compares.",
        "dptrain.run.prepare:Prepared.settings",
        "{} if self.scaled_by is None else", "{} if True else",
        "tests/run/test_scales.py::"
        "test_a_run_is_resumed_only_with_the_val_images_that_its_scales_were_measured_on",
    ),
    bug(
        "one layer left out of the norm",
        "The loop that adds up the layers' norms starts at the second.",
        "dptrain.gradients.fused:_squared_norms",
        "in parts.items():", "in list(parts.items())[1:] or parts.items():",
        _LARGEST,
    ),
    bug(
        "one head unclipped",
        "YOLO26's second head goes into the sum at full length.",
        "dptrain.gradients.fused:_weighted",
        "drop(piece).weighted_sum(weights[:, k])",
        "piece.weighted_sum(weights[:, k] if 'one2one' not in (layer_name or '') else torch.ones_like(weights[:, k]))",
        _LARGEST,
    ),
    bug(
        "norms in single precision",
        "A long gradient's squares are added up in one float32 sum, which comes out short.",
        "dptrain.gradients.rules.base:block_norms",
        "flat = gradients.flatten(1)",
        "flat = gradients.flatten(1)\n    return [torch.linalg.vector_norm(flat, dim=1, keepdim=True)]",
        LAYERS + "test_the_norm_of_a_long_row_is_right_in_single_precision",
    ),
    bug(
        "clipped sum in bfloat16",
        "Clipped gradients are added up in the passes' own format: each entry is off by up to 0.4 percent.",
        "dptrain.gradients.rules.base:weigh",
        "torch.mv(rows.flatten(1).t(), weights.to(rows.dtype))",
        "torch.mv(rows.flatten(1).t().bfloat16(), weights.bfloat16()).to(rows.dtype)",
        BF16 + "test_no_image_adds_more_than_the_clip_norm_and_sums_are_in_single_precision",
    ),
    bug(
        "gradients in bfloat16",
        "What the layers leave behind is taken as it is: norms and sums are in the passes' own format.",
        "dptrain.gradients.rules.base:full_precision",
        "return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x", "return x",
        BF16 + "test_no_image_adds_more_than_the_clip_norm_and_sums_are_in_single_precision",
    ),
    bug(
        "bfloat16 without a trial",
        "A GPU's passes are in bfloat16 whether or not an image's gradient then depends on its place.",
        "dptrain.detection.precision:settle_precision",
        "reason = _unsafe(model, loss, imgsz, at_once, engine)", 'reason = ""',
        BF16 + "test_arithmetic_that_depends_on_the_place_is_refused",
    ),
    bug(
        "sums in single precision",
        "The sum over physical batches is kept in float32, whose rounding grows with the draw.",
        "dptrain.training.trainer:PrivateTrainer._clipped_sum", "else torch.float64", "else torch.float32",
        "tests/training/test_trainer.py::test_the_sum_over_physical_batches_is_kept_in_double_precision",
    ),
    bug(
        "no room for rounding",
        "The factor is C / norm to the letter, and rounding carries the clipped gradient over C.",
        _WEIGHTS, "self.clip_norm * ROUNDING / norms", "self.clip_norm / norms",
        _LARGEST,
    ),
    bug(
        "clip norm from the data",
        "The norm is clipped at the median of the batch, which nothing noises.",
        _WEIGHTS, "self.clip_norm * ROUNDING / norms",
        "min(self.clip_norm, float(norms.nan_to_num(0.0, 0.0).median()) + 1e-9) * ROUNDING / norms",
        PAIRS,
    ),
    bug(
        "sensitivity halved",
        "The clip states C / 2, as if a unit could move the sum only one way.",
        "dptrain.privacy.clip_rules:FlatClip.sensitivity", "return self.clip_norm\n", "return self.clip_norm / 2\n",
        PAIRS, "tests/privacy/test_clipping.py::test_sensitivity",
    ),
    bugs(
        "every layer clipped to the whole norm",
        "Each of K layers gets all of C, and the noise is scaled to C: a unit adds up to C times the root of K.",
        [
            ("dptrain.privacy.clipping:Clipping.rule", "clip_norm / math.sqrt(count)", "clip_norm"),
            ("dptrain.privacy.clip_rules:GroupClip.sensitivity", "math.hypot(*self.norms)", "self.norms[0]"),
        ],
        RULES, GROUPS, CLIPS + "test_no_unit_passes_the_sensitivity_of_any_rule",
    ),
    bug(
        "a group kept where another is infinite",
        "A broken image drops out of the groups that are broken, and stays in the others; the engine zeroes all.",
        "dptrain.privacy.clip_rules:GroupClip.weights",
        "factors.masked_fill(~(factors > 0).all(1, keepdim=True), 0.0)", "factors",
        CLIPS + "test_a_gradient_that_is_not_finite_counts_as_zero_in_every_group",
    ),
    bug(
        "automatic clipping without its gamma outside",
        "g over its norm, plus gamma g, as a slip of the brackets makes of it: long gradients are not bounded.",
        "dptrain.privacy.clip_rules:AutomaticClip.weights",
        "ROUNDING / (squared_norms.double().sqrt() + GAMMA)", "ROUNDING / squared_norms.double().sqrt() + GAMMA",
        RULES, CLIPS + "test_automatic_clipping_is_the_papers",
    ),
    bug(
        "an outside clip rule taken at its word",
        "A rule from another package is not held to the sensitivity that it states.",
        "dptrain.privacy.outside_clip:HeldRule._checked", "and length <= self._sensitivity * _ABOVE", "",
        _OUTSIDE + "test_a_rule_that_fails_on_private_norms_ends_the_run_before_the_step_is_released",
        _OUTSIDE + "test_a_rule_that_fails_on_made_up_norms_is_refused_before_any_data",
    ),
    bug(
        "an outside clip rule with a memory",
        "Nobody asks a rule from another package again whether a unit still weighs the same.",
        "dptrain.privacy.outside_clip:HeldRule.weights", "if self._remembers(", "if False and self._remembers(",
        _OUTSIDE + "test_a_rule_that_fails_on_private_norms_ends_the_run_before_the_step_is_released",
    ),
    # gradients that are not finite
    bug(
        "zero times NaN",
        "The factor of a broken image is zero, and it is multiplied all the same.",
        "dptrain.gradients.fused:_weighted",
        "if _asks_for_nothing(squared.device) or bool(dropped.any()):", "if False:",
        PAIRS, ENGINES + "test_an_image_that_is_not_finite_leaves_the_others_alone",
    ),
    bug(
        "NaN passes the clip",
        "A norm that is NaN compares false with everything, and so it is never too long.",
        _WEIGHTS, "return kept(factors, squared_norms)", "return factors",
        PAIRS, "tests/privacy/test_clipping.py::test_edge_table",
    ),
    # layers and losses
    bug(
        "norms in half precision",
        "Under autocast the gradients, and their norms, are formed in bfloat16.",
        "dptrain.gradients.rules.base:full_precision",
        "return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x", "return x",
        ENGINES + "test_float16_and_bfloat16_gradients_are_formed_in_single_precision",
        "tests/gradients/test_autocast.py::test_norms_and_sums_are_in_full_precision",
    ),
    bug(
        "bias left out of the ghost norm",
        "The factored norm is of the weight alone, and the bias is clipped with it.",
        "dptrain.gradients.rules.linear:GhostLinearRecord.squared_norms",
        "norms if self.bias is None else norms + squared_norm(self.bias)", "norms",
        LAYERS + "test_linear_with_and_without_the_factored_form",
    ),
    bug(
        "timed on the batch",
        "The fastest way is found with the images at hand: the choice, and the time, tell of them.",
        "dptrain.gradients.rules.conv:choose",
        "a, g = _random((n * per_unit, *x.shape[1:]), x), _random((n * per_unit, *b.shape[1:]), b)",
        "a, g = x[: n * per_unit], b[: n * per_unit]",
        LAYERS + "test_what_is_timed_is_not_the_batch",
    ),
    bug(
        "second use of a layer not seen",
        "A layer that is called twice keeps the gradient of one call.",
        "dptrain.gradients.rules.base:Tape.take",
        "records[0] if len(records) == 1 else _sum(module, records, check_count)", "records[0]",
        LAYERS + "test_a_layer_used_twice",
    ),
    bug(
        "mean instead of sum of the losses",
        "The losses are averaged before the backward pass: an image's gradient shrinks as the batch grows.",
        "dptrain.gradients.fused:run", "torch.autograd.grad(losses.sum(),", "torch.autograd.grad(losses.mean(),",
        PAIRS, ENGINES + "test_networks_that_are_no_detectors",
    ),
    bug(
        "batch loss",
        "Ultralytics' own normaliser: the loss is divided by the targets of the whole batch.",
        "dptrain.detection.loss:_HeadLoss.per_image",
        "anchor_weights.sum(1).clamp(min=1)", "anchor_weights.sum().clamp(min=1)",
        PAIRS, "tests/detection/test_loss.py::test_one_images_boxes_never_change_anothers_gradient",
    ),
    bugs(
        "batch norm on",
        "The checkpoint's batch norms stay, in train mode, and the check that refuses them is switched off.",
        [
            (_NORMS, "setattr(module, child_name, FrozenBatchNorm2d.from_batch_norm(child))", "pass"),
            (_COUPLING, "for name, layer in named_layers(module):", "for name, layer in ():"),
        ],
        PAIRS, "tests/detection/test_model.py::test_frozen_norms_compute_what_the_checkpoint_did",
    ),
    bug(
        "only trainable norms are checked",
        "The check for batch norm skips frozen layers, as Opacus's validator does; they mix the batch all the same.",
        _COUPLING,
        "for name, layer in named_layers(module):\n",
        "for name, layer in named_layers(module):\n"
        "        if not any(p.requires_grad for p in layer.parameters(recurse=False)):\n            continue\n",
        ENGINES + "test_layers_that_mix_images_are_refused_by_name",
    ),
    bug(
        "frozen batch norm thaws",
        "model.train() turns the statistics of the batch on again.",
        "dptrain.gradients.modules:FrozenBatchNorm2d.forward",
        "False, 0.0, self.eps", "self.training, 0.03, self.eps",
        PAIRS, "tests/detection/test_model.py::test_train_never_turns_a_frozen_norm_back_on",
    ),
    bug(
        "a folded norm's mean is forgotten",
        "The gradient of the norm's weight is that of a norm whose running mean is zero.",
        "dptrain.gradients.rules.folded:folded_records", "products + offset * sums", "products",
        FOLDED + "test_the_gradients_are_those_of_autograd",
    ),
    bug(
        "a folded convolution is not scaled",
        "The weight's gradient is that of the folded weight: its norm is another than that of what is trained.",
        "dptrain.gradients.rules.folded:folded_records",
        "gradient *= scale.view(1, -1, *[1] * (gradient.dim() - 2))", "pass",
        FOLDED + "test_the_gradients_are_those_of_autograd",
    ),
    bug(
        "a norm lets anything through",
        "A folded norm does not look whether its input is what its convolution made, and leaves a map as it is.",
        "dptrain.gradients.rules.folded:_forwards", "if waiting.pop() is not x or waiting:", "if False:",
        FOLDED + "test_a_norm_that_is_given_something_else_is_refused",
    ),
    bug(
        "running statistics not watched",
        "A layer that counts what it sees takes it into the weights file, and nothing noises it.",
        "dptrain.training.trainer:PrivateTrainer._tensor_versions",
        "{name: (id(tensor), tensor._version) for name, tensor in tensors}", "{}",
        "tests/training/test_trainer.py::test_a_layer_that_keeps_statistics_is_refused",
    ),
    # images
    bug(
        "mosaic",
        "A quarter of the next image is pasted into each.",
        "dptrain.detection.data:DetectionDataset.samples",
        "image = self.read(index)",
        "image = self.read(index).copy()\n"
        "    other = self.read((index + 1) % len(self.image_files))\n"
        "    h, w = (max(1, min(a, b) // 2) for a, b in zip(image.shape[:2], other.shape[:2]))\n"
        "    image[:h, :w] = other[:h, :w]",
        PAIRS, DATA + "test_other_images_do_not_matter",
    ),
    bug(
        "augmentation seeded by the picture",
        "The seed is a sum of pixels: each image has the same augmentation in every step.",
        "dptrain.detection.data:DetectionDataset._sample",
        "np.random.default_rng(key if key[2] else key[:2])", "np.random.default_rng([int(image.sum()), *key[1:2]])",
        DATA + "test_row_and_seed_decide",
    ),
    bug(
        "an image twice in a step",
        "Two augmentations of an image, each clipped by itself: together they move the sum by 2C.",
        "dptrain.detection.loader:StepLoader._chunks",
        "chunk.append(unit)", "chunk += [unit, unit]",
        PAIRS, SERVED + "test_every_unit_is_served_at_the_accounted_rate_and_at_most_once_a_step",
    ),
    bug(
        "last physical batch dropped",
        "drop_last=True: which images are left out depends on how many were drawn.",
        "dptrain.detection.loader:StepLoader._chunks",
        "if chunk:", "if held == self.physical_batch_size:",
        PAIRS, SERVED + "test_the_physical_batch_leaves_no_unit_out",
    ),
    bug(
        "a step's rest enters the next",
        "What a step did not take is left in the loader's queue.",
        "dptrain.detection.loader:StepLoader._ahead",
        "for _ in current:\n                pass", "pass",
        "tests/detection/test_loader.py::test_what_is_left_of_a_step_does_not_leak_into_the_next",
    ),
    bug(
        "validation images train",
        "The training split is both splits: the images whose metrics are released have no guarantee.",
        "dptrain.datasets.sources:DataConfig.files",
        "getattr(self, split)", "(*self.train, *self.val) if split == 'train' else getattr(self, split)",
        PAIRS, SERVED + "test_a_run_samples_at_the_rate_of_its_event_however_many_images_there_are",
    ),
    bug(
        "shared images let through",
        "Nobody looks whether a validation image is a training image.",
        "dptrain.run.declared_public:refuse_shared",
        "if shared:", "if False:",
        "tests/run/test_declared_public.py::test_a_training_image_among_public_ones_is_refused_under_any_name",
    ),
)  # fmt: skip
