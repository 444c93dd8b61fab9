"""Bugs of sites that train in rounds: what repeats, begins anew, or leaves the site."""

from __future__ import annotations

from importlib.util import find_spec

from .edits import bug

_SITE = "tests/federated/test_site.py::"
_TAKE, _TRAIN = "dptrain.federated.site:_Site.take", "dptrain.federated.site:_Site._train"
_BEGIN = "copy_into(trainer.parameters, offer.parameters)"
_RESULT = "return self._release(offer.number, trainer.step, {n: p.detach() for n, p in trainer.parameters.items()})"

_FLOWER = "tests/federated/test_flower.py::"
_WEIGHS = bug(
    "sites weigh by what they did",
    "The average is by the steps that each site took, and not by what it declared.",
    "dptrain.federated.messages:content_of",
    "SIZE: release.dataset_size,",
    "SIZE: release.steps,",
    _FLOWER + "test_a_reply_holds_these_records_and_nothing_else",
    _FLOWER + "test_a_whole_federation_averages_by_declared_sizes_and_leaves_weights_and_a_record",
)

FEDERATED_BUGS = (
    bug(
        "a repeated round takes its steps again",
        "The server asks twice for one round, and the site takes the plan's next steps for an answer that it had.",
        _TAKE,
        "if done and count and offer.number == last:",
        "if False:",
        _SITE + "test_a_round_that_is_repeated_is_answered_again_and_spends_nothing",
    ),
    bug(
        "a new round begins the plan anew",
        "Steps and noise count from 1 in every round: what was spent before is taken again, and nobody counts it.",
        _TRAIN,
        _BEGIN,
        _BEGIN + "; trainer.step = 0",
        _SITE + "test_rounds_whose_server_changes_nothing_take_the_very_steps_of_one_run",
    ),
    bug(
        "the true number of images is sent",
        "The site tells the server how many images it has, for a fairer average.",
        _TRAIN,
        _RESULT,
        _RESULT.replace("return ", "return replace(") + ", dataset_size=len(prepared.pictures))",
        _SITE + "test_a_release_is_noised_or_declared_and_two_neighbours_differ_in_its_parameters_alone",
    ),
    *([_WEIGHS] if find_spec("flwr") else []),  # not everybody installs Flower
    bug(
        "a message about the images is sent",
        "The server is told what is wrong, in the words that were made for the hospital.",
        "dptrain.federated.site:told",
        "raise DeclinedError(FAILED) from None",
        "raise DeclinedError(str(error))",
        _SITE + "test_what_is_wrong_with_the_files_of_a_site_stays_there",
    ),
)
