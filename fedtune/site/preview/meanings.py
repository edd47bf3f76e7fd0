"""What each field of each message says, for people; a test keeps this equal to the types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fedtune.config.schema import Metric
from fedtune.federation.wire import EvaluateReply, Failure, HelloReply, PreflightReply, SiteCheck, TrainReply
from fedtune.secagg.messages import Advert, Binding, Refusal, Signed
from fedtune.secagg.trips import (
    Confirmation,
    MaskedAnswer,
    OpenedShare,
    ShareRecord,
    SharesAnswer,
    UnmaskedAnswer,
)

__all__ = ["MEANINGS", "UNKNOWN", "Meaning"]


@dataclass(frozen=True)
class Meaning:
    """What a field says.

    Attributes:
        text: In words.
        metric: The metric that ``federation.metrics`` and the policy have to name for it, else it is null;
            None for a field that always leaves.
    """

    text: str
    metric: Metric | None = None


UNKNOWN: Final = Meaning("nobody has written down what this says: ask before you let it leave")

_KIND: Final = Meaning("what kind of message this is")
_SITE: Final = Meaning("the name of this site in the federation")
_ROUND: Final = Meaning("number of the round")
_TRANSCRIPT: Final = Meaning("hash of the adverts of all members: which attempt this is about")

MEANINGS: Final[Mapping[type, Mapping[str, Meaning]]] = {
    HelloReply: {
        "kind": _KIND,
        "protocol": Meaning("version of the messages"),
        "version": Meaning("version of fedtune at this site"),
        "site": _SITE,
        "trains": Meaning("whether there is any row to train on"),
        "train_examples": Meaning("rows that train", "examples"),
        "held_out_examples": Meaning("rows that are held out", "examples"),
        "skipped_rows": Meaning("bad rows that were left out", "examples"),
        "base_name": Meaning("name of the base model as this site writes it; a path, if it is one"),
        "base_hash": Meaning("hash of the base model"),
        "parameters": Meaning("parameters of the base model"),
        "adapter_parameters": Meaning("parameters of the adapter"),
        "quantization": Meaning("how this site holds the base model"),
        "compute_dtype": Meaning("type of this site's arithmetic"),
        "load_seconds": Meaning("how long loading the base model took"),
    },
    TrainReply: {
        "kind": _KIND,
        "site": _SITE,
        "round": _ROUND,
        "examples": Meaning("rows trained on in this round", "examples"),
        "tokens": Meaning("tokens of these rows", "tokens"),
        "response_tokens": Meaning("tokens of these rows that the model learns to write", "tokens"),
        "steps": Meaning("optimizer steps, which the configuration demands"),
        "loss_before": Meaning("loss on the first step's rows before training", "train_loss"),
        "loss_after": Meaning("loss on the same rows after training", "train_loss"),
        "started": Meaning("when training began, by this machine's clock"),
        "finished": Meaning("when it ended"),
        "peak_memory_mib": Meaning("most memory that the process held", "peak_memory"),
    },
    EvaluateReply: {
        "kind": _KIND,
        "site": _SITE,
        "round": _ROUND,
        "loss": Meaning("mean loss on the held-out rows", "held_out_loss"),
        "personal_loss": Meaning("the same loss of the model that is this site's own", "personal_loss"),
        "tokens": Meaning("tokens that the mean is over", "tokens"),
        "examples": Meaning("held-out rows", "examples"),
        "started": Meaning("when the evaluation began, by this machine's clock"),
        "finished": Meaning("when it ended"),
    },
    PreflightReply: {
        "kind": _KIND,
        "protocol": Meaning("version of the messages"),
        "site": _SITE,
        "version": Meaning("version of fedtune at this site"),
        "flwr": Meaning("version of Flower at this site"),
        "python": Meaning("version of Python at this site"),
        "torch": Meaning("version of torch at this site"),
        "train_refused": Meaning("which of the policy's rules would refuse to train, without their values"),
        "evaluate_refused": Meaning("which would refuse to evaluate, likewise"),
        "approval": Meaning("whether the run is approved here, or waits for the operator"),
        "checks": Meaning("how this site's own checks ended, each as follows"),
        "checks_age_seconds": Meaning("how long ago these checks were made"),
        "days_left": Meaning("days until the first of this site's certificates ends"),
    },
    SiteCheck: {
        "name": Meaning("what was checked: one of a fixed list, without a file, a folder or a model"),
        "status": Meaning("ok, warning or failed; what was found stays here"),
        "code": Meaning("code of the failure, a page of the reference"),
    },
    Failure: {
        "kind": _KIND,
        "site": _SITE,
        "code": Meaning("code of the first problem, a page of the reference"),
        "reason": Meaning(
            "one sentence: of rows their number, of the policy codes; a folder of this site may be named"
        ),
    },
    Signed: {
        "kind": Meaning("which trip this is"),
        "sender": Meaning("this site's public identity, as in the roster"),
        "signature": Meaning("by this site's identity, over all that follows"),
        "body": Meaning("what follows"),
    },
    Binding: {
        "run": Meaning("name of the run"),
        "round": _ROUND,
        "attempt": Meaning("number of the attempt at this round"),
        "ring_bits": Meaning("bits of an encoded entry"),
        "prg": Meaning("cipher of the masks"),
        "corrupt_ppm": Meaning("assumed share of colluding members, in millionths"),
        "drop_ppm": Meaning("assumed share of members that drop out, in millionths"),
        "base_hash": Meaning("hash of the base model"),
        "adapter_hash": Meaning("hash of the adapter that the round starts from"),
        "config_hash": Meaning("hash of the configuration that shapes training"),
        "encoding_hash": Meaning("hash of the rules of encoding"),
        "roster_hash": Meaning("hash of the roster that this site accepted"),
    },
    Advert: {
        "binding": Meaning("what the attempt is about; every member says the same"),
        "mask_key": Meaning("a fresh public key, for the masks between two members"),
        "seal_key": Meaning("a fresh public key, under which others seal shares for this site"),
        "audit_head": Meaning("hash of the last entry of this site's audit log"),
    },
    SharesAnswer: {
        "transcript": _TRANSCRIPT,
        "b_commitment": Meaning("hash of this site's own mask, which nobody can open with it"),
        "records": Meaning("for each other member, shares of this attempt's keys under seal"),
    },
    ShareRecord: {
        "b_commitment": Meaning("salted hash of a share"),
        "key_commitment": Meaning("salted hash of a share"),
        "sealed": Meaning("both shares, encrypted for one member: the coordinator cannot read them"),
    },
    MaskedAnswer: {
        "transcript": _TRANSCRIPT,
        "statement": Meaning("this site's signature over the members whose masks are in the vector"),
        "masked": Meaning("the encoded update under its masks: each entry by itself is a random number"),
    },
    Confirmation: {
        "transcript": _TRANSCRIPT,
        "members": Meaning("members of the attempt"),
        "u2": Meaning("members that dealt shares"),
        "u3": Meaning("members whose vectors are in the sum"),
    },
    UnmaskedAnswer: {
        "transcript": _TRANSCRIPT,
        "own_b": Meaning("this site's own mask: with those between members still on, it opens the sum alone"),
        "b_shares": Meaning("shares of the own masks of members that are in the sum"),
        "key_shares": Meaning("shares of the keys of members that dropped out; never both of one member"),
    },
    OpenedShare: {
        "dealer": Meaning("whose share it is"),
        "share": Meaning("the share"),
        "salt": Meaning("opens the hash that the dealer gave"),
    },
    Refusal: {
        "transcript": _TRANSCRIPT,
        "code": Meaning("code of the check that failed"),
        "reason": Meaning("one sentence"),
        "accused": Meaning("members whose message failed a check"),
    },
}
