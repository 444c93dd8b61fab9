"""Bugs in what several processes do together."""

from __future__ import annotations

from .edits import bug, bugs

_STEPS = "tests/training/test_processes.py::"
_DOOR = "tests/privacy/test_processes.py::"
_NOISE = _DOOR + "test_the_noise_of_a_step_is_gaussian_of_the_plans_scale_whatever_the_number_of_processes"
_FIRST = _DOOR + "test_the_first_process_alone_comes_to_the_door_once_a_step_with_the_sum_over_the_whole_draw"
_PAIR = _DOOR + "test_one_unit_more_moves_the_sum_of_all_processes_by_its_own_clipped_gradient_and_nothing_else"
_SAME = _STEPS + "test_one_two_and_three_processes_give_the_same_weights"

_GROUP = "dptrain.training.processes:Group."
_SUM = "own = self._clipped_sum(self._group.counted(batches))"
_REDUCE = "self._together(dist.reduce, flat, dst=0)"
_HAND_OUT = "self._together(dist.broadcast, gradient, src=0)"
_EMPTY = "gradient = torch.empty(len(flat), dtype=dtype, device=flat.device)"
_OWN = "yield Draw(draw.indices[shares[draw.indices] == self.rank], draw.seed)"
_ADDED_UP = "or int(rows[:, 5].sum()) != whole"

PROCESS_BUGS = (
    bug(
        "noise on every rank",
        "Each process noises its own sum before they are added up: the noise is there as often as there are processes.",
        "dptrain.training.trainer:PrivateTrainer._noised", _SUM,
        _SUM + "\n        noised = self.clipped.mechanism.noise(own, self.noise_stream.at(self.step))\n"
        "        own = {name: value * self.plan.expected_batch_size for name, value in noised.items()}",
        _NOISE, _FIRST,
    ),
    bugs(
        "noise of the wrong rank",
        "What the second process has is handed out: its sum, which nobody has noised.",
        [
            (_GROUP + "noised", _HAND_OUT, "self._together(dist.broadcast, gradient, src=1)"),
            (_GROUP + "noised", _EMPTY, "gradient = flat.to(dtype)"),
        ],
        _NOISE, _PAIR,
    ),
    bugs(
        "every rank its own noise",
        "All add the sum up, and each noises it for itself: the weights drift apart.",
        [
            (_GROUP + "noised", _REDUCE, "self._together(dist.all_reduce, flat)"),
            (_GROUP + "noised", "if self.rank == 0:", "if True:"),
            (_GROUP + "noised", _HAND_OUT, "pass"),
        ],
        _NOISE, _FIRST,
    ),
    bug(
        "a unit on two ranks",
        "The last process also looks at the first one's units.",
        _GROUP + "own", "shares[draw.indices] == self.rank", "shares[draw.indices] <= self.rank",
        _SAME, _PAIR,
    ),
    bugs(
        "a unit on two ranks, and nobody counts",
        "The same, and the check of the shares is left out.",
        [
            (_GROUP + "own", "shares[draw.indices] == self.rank", "shares[draw.indices] <= self.rank"),
            (_GROUP + "noised", _ADDED_UP, ""),
        ],
        _SAME, _PAIR, _STEPS + "test_a_draw_that_is_not_shared_out_is_not_taken",
    ),
    bug(
        "a rank that drops its share",
        "The sums are not added up: the step has the first process's units only.",
        _GROUP + "noised", _REDUCE, "pass",
        _SAME, _FIRST,
    ),
    bug(
        "a draw for every rank",
        "Each process keys its draws for itself: a unit's chance is right, and the check of the draw is what notices.",
        _GROUP + "coins", 'NoiseStream(seed, "sampling", self._key)', 'NoiseStream(seed, "sampling")',
        _NOISE, _STEPS + "test_the_processes_make_one_draw_by_a_key_of_the_first_ones_system",
    ),
    bug(
        "a key of zeros",
        "The key is handed out before it is made: every run has the same draws, which anyone can repeat.",
        _GROUP + "__init__", "os.urandom(32) if rank == 0 else bytes(32)", "bytes(32)",
        _STEPS + "test_the_processes_make_one_draw_by_a_key_of_the_first_ones_system",
    ),
    bug(
        "shares by number",
        "Units go to processes in turn, by their place in the folder: one more moves all later ones elsewhere.",
        "dptrain.training.processes:shares_of", "(hashlib.sha256(b\"dptrain share of a unit:\" + identity).digest() "
        "for identity in identities)", "(number.to_bytes(16) for number, _ in enumerate(identities))",
        _STEPS + "test_a_units_process_follows_from_the_unit_alone",
    ),
    bug(
        "weights not compared",
        "A process whose weights are others goes on unnoticed.",
        _GROUP + "compare", "if (rows[other] != rows[0]).any():", "if False:",
        _STEPS + "test_weights_that_differ_by_a_bit_end_the_run",
    ),
)  # fmt: skip
