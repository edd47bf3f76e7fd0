"""What each built-in aggregation method trains, sends and needs: the one table that rules, estimates and
sites read.

The methods themselves are in `fedtune.aggregation`; a test holds the two together. A method of another
package is in no table: it is taken to train A and B and to need each update.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["METHODS", "Factors", "Masked", "Method", "least_updates", "method"]

Factors = tuple[Literal["A", "B"], ...]

BOTH: Factors = ("A", "B")


@dataclass(frozen=True, kw_only=True)
class Masked:
    """How a method goes under secure aggregation, where that is otherwise than in clear.

    Attributes:
        schedule: Factors that the rounds send, in turn; it repeats.
        fitted: Factors that the last round of a turn fits to what the first one trained, without training:
            a turn is one training then. Empty where every round trains.
        travels: What a site sends, for people.
    """

    schedule: tuple[Factors, ...]
    fitted: Factors = ()
    travels: str


@dataclass(frozen=True, kw_only=True)
class Method:
    """One aggregation method, as far as a configuration can know it.

    Attributes:
        schedule: Factors that the rounds train and send, in turn; it repeats.
        summable: Whether the server needs the sum of the updates and nothing else.
        exact: Whether the new product is the weighted mean of the products, up to rounding.
        resets_moments: Whether the new factors are in other coordinates than those that sites trained, so
            that their optimizers' moments mean nothing any more and every round starts with empty ones.
        has_side_car: Whether a second, frozen adapter travels to the sites beside the trained one.
        sketches: Whether a site sends sketches of its product instead of a delta.
        kept: Factors that a site trains beside those of the schedule and keeps for itself: there is
            no one model then, but one for each site.
        other_rows: What a site of a smaller rank does with the rows that it does not train
            (`fedtune.aggregation.ranks`); None where all sites need one rank.
        masked: How it goes under secure aggregation, where the sum of such updates as travel in clear does
            not do, but another sum does.
        why_not_secure: Where no sum does, why.
        why_not_quantized: Why its updates cannot travel in few bits (``updates.quantization``); None where a
            site sends a plain delta of A, of B, or of both.
        why_not_deployed: What sites of a deployment lack for it; None where they lack nothing.
        peft_method: The kind of adapter that it averages.
        travels: What a site sends, for people.
        needs: What it takes, for people.
        source: Where it is from.
    """

    schedule: tuple[Factors, ...]
    summable: bool
    exact: bool
    resets_moments: bool = False
    has_side_car: bool = False
    sketches: bool = False
    kept: Factors = ()
    other_rows: Literal["kept", "dropped"] | None = None
    masked: Masked | None = None
    why_not_secure: str = "looks at single updates, and secure aggregation shows their sum alone"
    why_not_quantized: str | None = None
    why_not_deployed: str | None = None
    peft_method: Literal["lora", "core"] = "lora"
    travels: str
    needs: str
    source: str

    @property
    def secure(self) -> bool:
        """Whether it works under secure aggregation, which shows the server sums alone."""
        return self.summable or self.masked is not None

    @property
    def why_not_asynchronous(self) -> str | None:
        """Why updates that began at different times cannot meet in it; None where they can."""
        if not self.summable:
            return "makes more of the updates than a mean of deltas, and late ones began at another adapter"
        if len(self.schedule) > 1:
            return "trains factors in turn, and updates of both would meet in one buffer"
        if self.other_rows == "dropped":
            return "drops rows of the adapter that a site began with, which the server may have no more"
        if self.kept:
            return "keeps factors at each site by round, and sites have no round in common"
        return None

    @property
    def sums_one_factor(self) -> bool:
        """Whether all that ever travels are sums of one and the same factor, so that noise in them enters the
        products once.
        """
        return self.summable and len({factor for factors in self.schedule for factor in factors}) == 1

    @property
    def trained(self) -> Factors:
        """All factors that some round trains, those that a site keeps included."""
        found = {factor for factors in (*self.schedule, self.kept) for factor in factors}
        return tuple(factor for factor in BOTH if factor in found)


_SIDE_CAR_IS_UNBOUNDED = "the memory limit in a site's policy does not count a side-car yet"

METHODS: dict[str, Method] = {
    "fedavg": Method(
        schedule=(BOTH,),
        summable=True,
        exact=False,
        travels="A and B",
        needs="a sum",
        source="FedIT, Zhang et al. 2024, arXiv:2305.05644",
    ),
    "ffa": Method(
        schedule=(("B",),),
        summable=True,
        other_rows="kept",
        exact=True,
        travels="B",
        needs="a sum",
        source="FFA-LoRA, Sun et al., ICLR 2024",
    ),
    "alternating": Method(
        schedule=(("B",), ("A",)),
        summable=True,
        other_rows="kept",
        exact=True,
        travels="B in odd rounds, A in even ones",
        needs="a sum",
        source="RoLoRA, Chen et al., NeurIPS 2025, arXiv:2502.01755",
    ),
    "core": Method(
        schedule=(("B",),),
        summable=True,
        exact=True,
        why_not_quantized="a site sends a rank x rank matrix, which is small as it is",
        peft_method="core",
        travels="a rank x rank matrix a layer",
        needs="a sum; peft.method=core",
        source="Fed-SB, Singhal et al. 2025, arXiv:2502.15436",
    ),
    "fedsa": Method(
        schedule=(("A",),),
        summable=True,
        exact=False,
        kept=("B",),
        travels="A",
        needs="a sum; a disk at each site",
        source="FedSA-LoRA, Guo et al., ICLR 2025, arXiv:2410.01463",
    ),
    "svd": Method(
        schedule=(BOTH,),
        summable=False,
        other_rows="dropped",
        exact=False,
        resets_moments=True,
        travels="A and B",
        needs="each update",
        source="FlexLoRA, Bai et al., NeurIPS 2024, arXiv:2402.11505",
    ),
    "fedex": Method(
        schedule=(BOTH,),
        summable=False,
        exact=True,
        has_side_car=True,
        why_not_deployed=_SIDE_CAR_IS_UNBOUNDED,
        travels="A and B; down also a side-car",
        needs="each update",
        source="FedEx-LoRA, Singhal et al., ACL 2025, arXiv:2410.09432",
    ),
    "flora": Method(
        schedule=(BOTH,),
        summable=False,
        other_rows="dropped",
        exact=True,
        resets_moments=True,
        has_side_car=True,
        why_not_deployed=_SIDE_CAR_IS_UNBOUNDED,
        travels="A and B; down also a side-car",
        needs="each update",
        source="FLoRA, Wang et al., NeurIPS 2024, arXiv:2409.05976",
    ),
    "projection": Method(
        schedule=(BOTH,),
        summable=False,
        masked=Masked(
            schedule=(("A",), ("B",)),
            fitted=("B",),
            travels="A, and in the round after it the B that fits beside the mean A",
        ),
        exact=False,
        travels="A and B",
        needs="two sums, in two rounds, or each update",
        source="least squares, Penrose 1956; the protocol is ours",
    ),
    "sketch": Method(
        schedule=(BOTH,),
        summable=False,
        masked=Masked(
            schedule=(BOTH,),
            travels="by how much two sketches a layer changed, as an adapter of rank "
            "aggregation.sketch_width",
        ),
        exact=False,
        other_rows="dropped",
        resets_moments=True,
        why_not_quantized="a site sends sketches",
        sketches=True,
        travels="two sketches a layer, as an adapter of rank aggregation.sketch_width",
        needs="a sum; a small federation",
        source="Tropp et al., SIAM J. Matrix Anal. Appl. 38(4), 2017",
    ),
    "zero_padding": Method(
        schedule=(BOTH,),
        summable=True,
        exact=False,
        other_rows="dropped",
        travels="A and B",
        needs="a sum; biased",
        source="HetLoRA, Cho et al., EMNLP 2024, arXiv:2401.06432",
    ),
}
"""``aggregation.method`` to what it is."""

_OTHER = Method(
    schedule=(BOTH,), summable=False, exact=False, travels="A and B", needs="each update", source=""
)


def method(name: str) -> Method:
    """Return what is known of a method; of one from another package, what is assumed."""
    return METHODS.get(name, _OTHER)


def least_updates(defence: str, false: int) -> int:
    """Return how many updates a round must have for a defence against ``false`` of them.

    Blanchard et al. 2017, proposition 1 (Krum); El Mhamdi et al. 2018, section 4 (Bulyan); Yin et al. 2018.
    """
    if defence in {"krum", "multi_krum"}:
        return 2 * false + 3
    if defence == "bulyan":
        return 4 * false + 3
    return 2 * false + 1 if defence == "trimmed_mean" else 1
