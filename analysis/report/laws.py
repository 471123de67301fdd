"""The estimates of every law as the report shows them: value, interval, bias found, and the papers' exponents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from analysis import published as pub
from analysis.chain.results import Laws
from analysis.figures.text import interval, number
from analysis.outcome import Estimate

# law -> (heading, what it is); in the order of the page.
LAW_TEXT = {
    "critical-batch": ("Critical batch size", "B_crit = B_* / L^(1/α_B), in tokens; B_* is its value at one nat."),
    "frontier adjusted": (
        "Frontier, adjusted to C_min",
        "y = coefficient · C_min^exponent along the lower envelope, C_min in FLOP; B at B_crit, S is S_min, "
        "D = 2·B_crit·S_min.",
    ),
    "frontier raw": (
        "Frontier at the fixed batch",
        "y = coefficient · C^exponent along the lower envelope, C = 6ND in FLOP.",
    ),
    "isoflop": ("IsoFLOP minima", "N ∝ C^a and D ∝ C^b through the minima of the parabolas."),
    "parametric": ("Parametric fit", "L = E + A/N^α + B/D^β; a = β/(α+β), b = α/(α+β)."),
    "kaplan-ns": ("Kaplan's surface", "L(N, S_min) = (N_c/N)^α_N + (S_c/S_min)^α_S."),
    "kaplan-n": ("Loss against size", "L(N) = (N_c/N)^α_N at the end of the longest runs."),
    "kaplan-d": ("Loss against data", "L(D) = (D_c/D)^α_D of large models on limited data."),
    "kaplan-nd": ("Loss against size and data", "L(N, D) = [(N_c/N)^(α_N/α_D) + D_c/D]^α_D."),
    "kaplan-c": ("Loss against compute", "L(C) = (C_c/C)^α_C along the fixed-batch frontier, C_c in PF-days."),
    "kaplan-c-min": ("Loss against least compute", "L(C_min) = (C_c/C_min)^α_C along the adjusted frontier."),
    "repeated": ("Repeated data", "L = E + A/N'^α + B/D'^β with the effective N' and D' of Muennighoff et al. 2023."),
}

# Where a paper's exponent can be compared; its constants depend on tokenizer and text and cannot.
PUBLISHED = {
    ("critical-batch", "alpha_B"): f"{pub.ALPHA_B:.2f} (Kaplan)",
    ("critical-batch", "slope"): f"{pub.B_CRIT.exponent:.2f} (Kaplan)",
    ("frontier adjusted", "a"): f"{pub.N_OPT.exponent} (Kaplan)",
    ("frontier adjusted", "B_exponent"): f"{pub.B_OPT.exponent} (Kaplan)",
    ("frontier adjusted", "S_exponent"): f"{pub.S_OPT.exponent} (Kaplan)",
    ("frontier adjusted", "b"): f"{pub.D_OPT.exponent} (Kaplan)",
    ("frontier adjusted", "L_exponent"): f"{pub.L_OF_C_MIN.exponent:.3f} (Kaplan)",
    ("frontier raw", "a"): f"{pub.N_FIXED_BATCH.exponent} (Kaplan); {pub.APPROACH_1.exponent:.2f} (Hoffmann)",
    ("frontier raw", "L_exponent"): f"{pub.L_OF_C.exponent:.3f} (Kaplan)",
    ("isoflop", "a"): f"{pub.APPROACH_2.exponent:.2f} (Hoffmann)",
    ("isoflop", "b"): f"{1 - pub.APPROACH_2.exponent:.2f} (Hoffmann)",
    ("parametric", "alpha"): f"{pub.APPROACH_3.alpha:.3f} (Hoffmann); {pub.REFIT.alpha} (Besiroglu)",
    ("parametric", "beta"): f"{pub.APPROACH_3.beta:.3f} (Hoffmann); {pub.REFIT.beta} (Besiroglu)",
    ("parametric", "a"): f"{pub.APPROACH_3.a:.2f} (Hoffmann); {pub.REFIT.a:.2f} (Besiroglu)",
    ("parametric", "b"): f"{pub.APPROACH_3.b:.2f} (Hoffmann); {pub.REFIT.b:.2f} (Besiroglu)",
    ("kaplan-ns", "alpha_N"): f"{pub.SURFACE.alpha_N} (Kaplan)",
    ("kaplan-ns", "alpha_S"): f"{pub.SURFACE.alpha_S} (Kaplan)",
    ("kaplan-ns", "alpha_C_min"): f"{pub.ALPHA_C_MIN_DERIVED} (Kaplan, Eq. B.7)",
    ("kaplan-n", "alpha_N"): f"{-pub.L_OF_N.exponent} (Kaplan)",
    ("kaplan-d", "alpha_D"): f"{-pub.L_OF_D.exponent} (Kaplan)",
    ("kaplan-c", "alpha_C"): f"{-pub.L_OF_C.exponent} (Kaplan)",
    ("kaplan-c-min", "alpha_C_min"): f"{-pub.L_OF_C_MIN.exponent:.3f} (Kaplan)",
    ("kaplan-nd", "alpha_N"): f"{pub.DATA_SURFACE.alpha_N} (Kaplan)",
    ("kaplan-nd", "alpha_D"): f"{pub.DATA_SURFACE.alpha_D} (Kaplan)",
    ("repeated", "R_D"): f"{pub.REPEATED.R_D:.1f} (Muennighoff)",
    ("repeated", "R_N"): f"{pub.REPEATED.R_N:.1f} (Muennighoff)",
}


@dataclass(frozen=True)
class Row:
    """One estimate in words. bias: of the estimator as simulations found it, or empty. calibrated: whether
    such intervals hold the truth as often as they say on synthetic sweeps; None where that was not judged."""

    name: str
    value: str
    interval: str
    bias: str
    published: str
    calibrated: bool | None


@dataclass(frozen=True)
class LawTable:
    """The estimates of one law."""

    title: str
    text: str
    rows: list[Row]

    @property
    def biased(self) -> bool:
        """Whether any bias is stated."""
        return any(row.bias for row in self.rows)

    @property
    def compared(self) -> bool:
        """Whether any published value stands beside."""
        return any(row.published for row in self.rows)


def law_tables(laws: Laws, verdicts: Mapping[str, bool]) -> list[LawTable]:
    """Every law there is, in the order of `LAW_TEXT`. verdicts: by "law.name" (`analysis.uncertainty.labels`)."""
    found = laws.estimates()
    judged = {key: key for key in found} | ({"parametric": laws.parametric.judged_as} if laws.parametric else {})
    return [
        LawTable(
            title, text, [_row(laws, key, n, e, verdicts.get(f"{judged[key]}.{n}")) for n, e in found[key].items()]
        )
        for key, (title, text) in LAW_TEXT.items()
        if key in found
    ]


def _row(laws: Laws, law: str, name: str, e: Estimate, calibrated: bool | None) -> Row:
    bias = "" if e.bias is None else f"{'-' if e.bias < 0 else '+'}{number(abs(e.bias), 2)}"
    shown = interval(e).partition(" ")[2] or "–"
    return Row(_words(laws, law, name), number(e.value, 4), shown, bias, PUBLISHED.get((law, name), ""), calibrated)


def _words(laws: Laws, law: str, name: str) -> str:
    at = laws.critical.at_loss if laws.critical else None
    if name == "B_crit" and at is not None:
        return f"B_crit at loss {at:.3g} (tokens)"
    if law.startswith("frontier"):
        name = {"a": "N exponent", "b": "D exponent"}.get(name, name)
    return name.replace("_coefficient", " coefficient").replace("_exponent", " exponent")
