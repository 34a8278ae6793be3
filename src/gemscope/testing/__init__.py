"""Tiny models and planted SAEs with known answers, for our tests and for users' tests."""

from gemscope.testing.layers import PlantedLayers, planted_layers
from gemscope.testing.models import CONTEXT, TINY, VOCAB, tiny_model
from gemscope.testing.saes import D_MODEL, Planted, identity_sae, planted_sae

__all__ = [
    "CONTEXT",
    "D_MODEL",
    "TINY",
    "VOCAB",
    "Planted",
    "PlantedLayers",
    "identity_sae",
    "planted_layers",
    "planted_sae",
    "tiny_model",
]
