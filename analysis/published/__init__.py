"""Published constants, each with its source, and the laws they make.

    from analysis import published as pub
    pub.N_OPT(1e-3)

Units: losses in nats per token of the paper's own tokenizer, parameters N as that paper counts them (Kaplan without
embeddings, Hoffmann with), compute in PF-days where a name says so and in FLOP elsewhere, batches and data in tokens.
Constants of different tables are separate fits: never mix rows. `NOTES` lists where the printed numbers disagree.
"""
# ruff: noqa: F403, F405 (one name for each constant, whichever paper it is from)

from analysis.published.forms import *
from analysis.published.hoffmann import *
from analysis.published.kaplan import *
from analysis.published.later import *

NOTES: dict[str, str] = KAPLAN_NOTES | HOFFMANN_NOTES | LATER_NOTES
