"""Hospitals that never share an image train one detector, each with its own guarantee, by Flower (https://flower.ai).

A **site** follows one plan over all rounds with its own loop, ledger, budget and statement (``site``); the **server**
averages what the sites release (``server``). ``client`` and ``server`` alone import Flower: ``pip install
'dptrain[federated]'``.
"""
