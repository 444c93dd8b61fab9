"""Bugs in sampling, in the noise, and in the loop around them."""

from __future__ import annotations

from .edits import bug, bugs
from .gradient_bugs import PAIRS, SERVED

ADDED = "tests/privacy/test_added_noise.py::"
NOISE = "tests/privacy/test_noise.py::"
LOOP = "tests/training/test_trainer.py::"
WHOLE = "tests/privacy/test_neighbours.py::test_whole_runs_on_neighbours_leave_the_same_files"

_SCALE = ADDED + "test_what_was_added_is_gaussian_of_the_plans_scale_and_no_other"
_SHARED = ADDED + "test_no_two_steps_runs_or_parameters_share_their_noise"
_RATE = SERVED + "test_every_unit_is_served_at_the_accounted_rate_and_at_most_once_a_step"
_COINS = SERVED + "test_coins_are_independent_between_units_and_between_steps"
_SIZES = SERVED + "test_sizes_are_those_of_independent_coins"

AHEAD = "tests/privacy/test_ahead.py::"
_DRAW = "dptrain.privacy.sampling:PoissonSampler.draw"
_DRAWN = "np.flatnonzero(stream.uniform(self.num_units) < self.sample_rate)"
_DOOR = "dptrain.privacy.noise:privatize"
_STEP = "dptrain.training.trainer:PrivateTrainer._take_step"
_SUM = "dptrain.training.trainer:PrivateTrainer._clipped_sum"
_RELEASED = "dptrain.training.trainer:PrivateTrainer._released"
_STREAM = "dptrain.privacy.streams:NoiseStream."
_FORKED = "if self.secure and self._process != os.getpid():"
_BEGUN = "if self._ahead is not None:"
_KEPT = f"{_BEGUN}\n        return\n    if False:"
_COUNT = "counts.append(len(batch['img'] if isinstance(batch, dict) else batch[0]))"
_NOISED = "return self.clipped.mechanism.noise(total, stream)"
_COUNTED = "if self._on_release is not None:\n        self._on_release(self.step + 1)"

NOISE_BUGS = (
    # sampling
    bug(
        "fixed batches",
        "A shuffled loader: every step has as many images as the rate asks for, never more nor fewer.",
        _DRAW, _DRAWN,
        "np.sort(np.argsort(stream.uniform(self.num_units))[: round(self.sample_rate * self.num_units)])",
        _SIZES, "tests/privacy/test_sampling.py::test_draw_sizes_vary_as_independent_coins_do",
    ),
    bug(
        "epochs",
        "One shuffle, walked through in batches: an image that was just seen does not come again soon.",
        _DRAW, _DRAWN,
        "np.flatnonzero((NoiseStream(7).uniform(self.num_units) + step * self.sample_rate) % 1 < self.sample_rate)",
        _COINS, _SIZES,
    ),
    bug(
        "sampling with replacement",
        "As many row numbers as the rate asks for, each drawn from all: one image can be in a step twice.",
        _DRAW, _DRAWN,
        "np.sort((stream.uniform(round(self.sample_rate * self.num_units)) * self.num_units).astype(int))",
        _RATE, _SIZES,
    ),
    bug(
        "one coin for two images",
        "Coins are drawn in pairs, to be quicker: neighbours in the folder come together.",
        _DRAW, "stream.uniform(self.num_units)",
        "np.repeat(stream.uniform(-(-self.num_units // 2)), 2)[: self.num_units]",
        _COINS,
    ),
    bug(
        "the same draw in every step",
        "A sampler seeded for reproducibility.",
        _DRAW, "stream = self._stream.at(step)", "stream = NoiseStream(0, 'sampling')",
        _COINS, "tests/privacy/test_sampling.py::test_units_and_steps_are_independent",
    ),
    bug(
        "seed after the coins",
        "The augmentation's seed is drawn behind the coins: one image more changes how all others are augmented.",
        _DRAW,
        "seed = stream.integer()  # before the coins: one unit more must not change how the others are augmented\n"
        "    return Draw(np.flatnonzero(stream.uniform(self.num_units) < self.sample_rate), seed)",
        "drawn = np.flatnonzero(stream.uniform(self.num_units) < self.sample_rate)\n"
        "    return Draw(drawn, stream.integer())",
        PAIRS, "tests/privacy/test_sampling.py::test_adding_a_unit_at_the_end_leaves_the_others_draws_alone",
    ),
    bug(
        "rate from the folder",
        "The sampler's rate is the batch over the true number of images, the accountant's the one that was declared.",
        "dptrain.privacy.plan:PrivacyPlan.sampler",
        "self.sample_rate", "min(1.0, self.expected_batch_size / max(1, num_units))",
        SERVED + "test_a_run_samples_at_the_rate_of_its_event_however_many_images_there_are",
        "tests/privacy/test_plan.py::test_parts_come_from_the_plan",
    ),
    bug(
        "empty draws skipped",
        "A step without images is passed over: who sees the steps learns that nobody was drawn.",
        "dptrain.detection.loader:StepLoader._here",
        "for draw in draws:\n", "for draw in draws:\n        if len(draw.indices) == 0:\n            continue\n",
        PAIRS, SERVED + "test_an_empty_draw_is_a_step",
    ),
    # noise
    bug(
        "half the noise",
        "The multiplier is halved on the way.",
        _DOOR, "mul_(noise_multiplier * sensitivity)", "mul_(noise_multiplier * sensitivity / 2)",
        _SCALE, NOISE + "test_what_is_added_is_gaussian_of_the_right_scale_and_no_other",
    ),
    bug(
        "multiplier taken for the deviation",
        "The clip norm is forgotten: right for C = 1, and for no other.",
        _DOOR, "mul_(noise_multiplier * sensitivity)", "mul_(noise_multiplier)",
        _SCALE, NOISE + "test_what_is_added_is_gaussian_of_the_right_scale_and_no_other",
    ),
    bug(
        "uniform noise",
        "Another distribution of the same variance.",
        _STREAM + "_made",
        "numbers = torch.empty(count + count % 2, dtype=torch.float64)",
        "return torch.from_numpy((self.uniform(count) - 0.5) * 12**0.5)",
        _SCALE,
    ),
    bug(
        "noise of 24 bits",
        "Uniform numbers in single precision: the Gaussian ends at 5.9 deviations, and a small delta is not met.",
        "dptrain.privacy.streams:_box_muller",
        "(words & np.uint64(2**53 - 1)).astype(np.float64)",
        "((words & np.uint64(2**24 - 1)).astype(np.float64) + 0.5) * 2.0**29",
        ADDED + "test_the_tails_reach_as_far_as_their_bits",
    ),
    bug(
        "one noise for all tensors",
        "Every parameter reads the noise from its start: differences of gradients have none.",
        _DOOR, "start += tensor.numel()", "start += 0",
        _SHARED, NOISE + "test_parameters_get_different_noise",
    ),
    bug(
        "biases without noise",
        "Vectors are left as they are; they are few, and hide among the many.",
        _DOOR, "(tensor.double() + part).to(tensor.dtype)",
        "(tensor.double() + part * (tensor.dim() > 1)).to(tensor.dtype)",
        ADDED + "test_every_parameter_has_its_full_noise",
    ),
    bug(
        "noise once a physical batch",
        "Each physical batch is noised as it comes.",
        _SUM, "self._part(some).values()", "self.clipped.mechanism.noise(self._part(some), self.noise_stream).values()",
        PAIRS, LOOP + "test_noise_is_added_once_a_step_whatever_the_physical_batch",
    ),
    bug(
        "torch's generator",
        "torch.randn: its default seed is the same in every process, and 64 bits decide all of the noise.",
        _DOOR, "stream.gaussian(total)", "torch.randn(total, dtype=torch.float64)",
        PAIRS, ADDED + "test_no_word_of_the_keystream_is_used_twice_across_steps_and_resumes",
    ),
    bug(
        "a key that is no secret",
        "The generator is keyed by a constant.",
        _STREAM + "__init__", "os.urandom(32)", "bytes(32)",
        NOISE + "test_unseeded_streams_differ_and_never_repeat",
        ADDED + "test_no_word_of_the_keystream_is_used_twice_across_steps_and_resumes",
    ),
    bug(
        "one key for all jobs of a process",
        "The key is drawn once and kept: all jobs of a sweep that one process takes draw the same units and noise.",
        _STREAM + "__init__", "os.urandom(32)", "globals().setdefault('_key' + purpose, os.urandom(32))",
        "tests/run/sweep/test_sweep_runs.py::test_no_two_jobs_of_a_process_share_a_draw_or_its_noise",
        NOISE + "test_unseeded_streams_differ_and_never_repeat",
    ),
    bugs(
        "counter set back",
        "The keystream starts anew at every call: all steps have the same noise.",
        [
            (_STREAM + "__init__", "self._keystream = _keystream(", "self._key = ("),
            (_STREAM + "words", "self._keystream.update(", "_keystream(self._key).update("),
            (_STREAM + "words", _FORKED, "if False:"),
        ],
        _SHARED, NOISE + "test_unseeded_streams_differ_and_never_repeat",
    ),
    bug(
        "same keystream in a fork",
        "A forked process continues with its parent's generator: both release the same noise.",
        _STREAM + "words", _FORKED, "if False:",
        ADDED + "test_a_forked_process_does_not_repeat_its_parents_noise",
    ),
    # noise that is made ahead
    bugs(
        "a block of noise used twice",
        "What was made ahead is kept after its step: the next has the same noise, and their difference has none.",
        [
            (_STREAM + "_taken", "ahead, self._ahead = self._ahead, None", "ahead = self._ahead"),
            (_STREAM + "begin", _BEGUN, _KEPT),
            (_STREAM + "drop", "ahead, self._ahead = self._ahead, None", "return"),
        ],
        AHEAD + "test_no_step_has_the_noise_of_another", AHEAD + "test_a_block_is_taken_once",
    ),
    bugs(
        "the noise of a failed step",
        "A step fails after its noise was begun, and the next takes what is left, made for another sum.",
        [
            ("dptrain.training.trainer:PrivateTrainer._noise_ahead", "stream.drop()", "pass"),
            (_STREAM + "begin", _BEGUN, _KEPT),
        ],
        AHEAD + "test_a_failed_step_leaves_no_noise_for_the_next",
    ),
    bug(
        "a block of another size",
        "What was made ahead for fewer numbers is stretched: parameters share their noise.",
        "dptrain.privacy.ahead:Ahead.take", "if request != self._request:",
        "if request != self._request:\n        return self._block.result().repeat(9)[: request[0]]\n    if False:",
        AHEAD + "test_a_block_serves_the_request_it_was_made_for_and_no_other",
    ),
    bug(
        "no noise where its thread fails",
        "The error of the thread is swallowed, and the sum goes out as it is.",
        "dptrain.privacy.ahead:Ahead.take", "except Exception as error:",
        "except Exception as error:\n        import torch\n        return torch.zeros(request[0], dtype=torch.float64)",
        AHEAD + "test_a_thread_that_fails_is_an_error_and_never_missing_noise",
    ),
    bug(
        "half a block where its thread fails",
        "What one of several threads could not make stays as the memory was.",
        "dptrain.privacy.ahead:in_parallel", "other.result()", "other.exception()",
        AHEAD + "test_a_block_that_one_of_its_threads_could_not_make_is_an_error",
    ),
    # the loop
    bugs(
        "division by the true batch",
        "The mean over the images that were drawn: their number is private, and one image more moves all of it.",
        [
            (_SUM, "for batch in batches:", "counts = []\n        for batch in batches:\n            " + _COUNT),
            (_SUM, "return total", "scale = self.plan.expected_batch_size / max(1, sum(counts))\n"
                                   "    return {name: value * scale for name, value in total.items()}"),
        ],
        PAIRS,
    ),
    bug(
        "optimizer fed without noise",
        "The noised gradient is made, and the other one used.",
        _RELEASED, _NOISED, "return {name: value / self.plan.expected_batch_size for name, value in total.items()}",
        PAIRS, _SCALE,
    ),
    bug(
        "average before the noise",
        "The moving average takes the clean gradient, for better weights.",
        _RELEASED, _NOISED,
        "for name, value in self.average.values.items():\n"
        "        value.sub_(0.01 * total[name].to(value.dtype) / self.plan.expected_batch_size)\n    " + _NOISED,
        PAIRS, WHOLE, LOOP + "test_the_average_follows_the_noised_iterates_only",
    ),
    bug(
        "learning rate from the gradient",
        "The rate is scaled by the norm of the clean sum.",
        _RELEASED, _NOISED,
        "for group in self.optimizer.param_groups:\n"
        "        group['lr'] *= 1.0 + float(sum(value.square().sum() for value in total.values()))\n    " + _NOISED,
        PAIRS, WHOLE,
    ),
    bugs(
        "stale sum after an error",
        "The sum is kept on the trainer; a step that fails half-way leaves its images in the next.",
        [
            (_SUM, "before = self._tensor_versions()",
             "total = self.__dict__.setdefault('_total', total)\n    before = self._tensor_versions()"),
            (_RELEASED, _NOISED, "self.__dict__.pop('_total')\n    " + _NOISED),
        ],
        LOOP + "test_an_exception_in_a_step_leaves_no_stale_sum",
    ),
    bug(
        "journal after the noise",
        "A step is counted when its noise is there: one that is killed in between is not.",
        _RELEASED, f"{_COUNTED}\n    {_NOISED}",
        f"{_NOISED.replace('return', 'noised =')}\n    {_COUNTED}\n    return noised",
        PAIRS, WHOLE,
    ),
    bug(
        "journal not on the disk",
        "The count stays in the system's memory, and a power cut forgets it.",
        "dptrain.training.journal:StepJournal.record", "os.fsync(self._handle)", "pass",
        WHOLE,
        "tests/faults/test_power.py::test_a_step_is_on_the_disk_when_it_is_counted_and_so_is_the_journals_name",
    ),
    bug(
        "resume forgets steps",
        "A resumed run continues from its checkpoint and takes the lost steps again, with new noise.",
        "dptrain.training.trainer:PrivateTrainer.restore", 'max(state["step"], step or 0)', 'state["step"]',
        LOOP + "test_lost_steps_stay_spent",
    ),
    bugs(
        "more steps than planned",
        "Whoever asks gets more steps than were accounted for.",
        [
            ("dptrain.training.trainer:PrivateTrainer.run", "if until > self.plan.steps:", "if False:"),
            (_STEP, "if self.step >= self.plan.steps:", "if False:"),
        ],
        LOOP + "test_more_steps_than_planned_are_refused",
        LOOP + "test_no_way_of_calling_takes_more_steps_than_planned",
    ),
    bugs(
        "weight decay",
        "No bug: what the optimizer does with the noised gradient and the weights is free.",
        [
            (_STEP, "self.optimizer.step()", "for group in self.optimizer.param_groups:\n"
                                             "        group['weight_decay'] = 0.01\n    self.optimizer.step()"),
        ],
        PAIRS, _SCALE,
        harmless=True,
    ),
)  # fmt: skip
