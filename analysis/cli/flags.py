"""Each law's own flags of `isoloss fit`."""

from __future__ import annotations

import argparse


def power_law(parser: argparse.ArgumentParser) -> None:
    """Columns and the offset."""
    parser.add_argument("--x", required=True, metavar="COL", help="column of x")
    parser.add_argument("--y", required=True, metavar="COL", help="column of y")
    parser.add_argument("--offset", action="store_true", help="y = coefficient x^exponent + offset, offset at least 0")


def critical_batch(parser: argparse.ArgumentParser) -> None:
    """Where the overhead of B_20 counts from."""
    text = "batch from which the 20%% overhead of B_20 counts (Zhang et al. 2024; default: the smallest of each group)"
    parser.add_argument("--optimal-batch", type=float, metavar="TOKENS", help=text)


def isoflop(parser: argparse.ArgumentParser) -> None:
    """How a minimum is found, and the noise."""
    text = "minimum of each budget: a parabola through five points, or Akima's interpolant (default parabola)"
    parser.add_argument("--method", choices=("parabola", "akima"), help=text)
    text = "standard deviation of ln(loss) between seeds (default: estimated)"
    parser.add_argument("--noise", type=float, metavar="SD", help=text)


def frontier(parser: argparse.ArgumentParser) -> None:
    """How N_opt is found, and C_min."""
    text = "N_opt(C) from a valley around the envelope, or from the envelope itself (default surface)"
    parser.add_argument("--method", choices=("surface", "envelope"), help=text)
    text = "fit C_min = C/(1 + B/B_crit) too, with B_crit = B_STAR/L^(1/ALPHA_B) and the column batch_tokens"
    parser.add_argument("--critical-batch", type=float, nargs=2, metavar=("B_STAR", "ALPHA_B"), help=text)


def parametric(parser: argparse.ArgumentParser) -> None:
    """Without E."""
    parser.add_argument("--no-offset", action="store_true", help="without E: L = A/N^alpha + B/D^beta")


def kaplan_ns(parser: argparse.ArgumentParser) -> None:
    """S_min from steps."""
    text = "from columns steps and batch_tokens, S_min = S/(1 + B_crit/B) with B_crit = B_STAR/L^(1/ALPHA_B)"
    names = ("B_STAR", "ALPHA_B")
    parser.add_argument("--critical-batch", type=float, nargs=2, metavar=names, help=f"{text} (Kaplan: 2.1e8 0.21)")


def repeated(parser: argparse.ArgumentParser) -> None:
    """The law of fresh data."""
    text = "constants of the law without repetition, taken as known (default: fitted too)"
    parser.add_argument("--base", type=float, nargs=5, metavar=("A", "B", "E", "ALPHA", "BETA"), help=text)
