"""Control variates on their way: the federation's down to a site, the change of a site's own up."""

from __future__ import annotations

from collections.abc import Collection

from flwr.app import ArrayRecord

from fedtune.aggregation.carrying import Carried
from fedtune.aggregation.control import as_controls, control_name, controls_of
from fedtune.config.schema import UpdatesConfig
from fedtune.models.adapter import Adapter, AdapterSpec, Factor
from fedtune.training.delta import Delta
from fedtune.updates.codec import to_arrays
from fedtune.updates.decode import decode
from fedtune.updates.encode import encode
from fedtune.updates.protect import protect

__all__ = ["read_controls", "with_change", "with_controls"]

_EXACT = UpdatesConfig(quantization="none", block_size=64, error_feedback=False, max_norm=None)


def with_controls(
    record: ArrayRecord, adapter: Adapter, carried: Carried, spec: AdapterSpec, factors: Collection[Factor]
) -> ArrayRecord:
    """Return the global model's record with the federation's variates of a round's factors beside it."""
    controls = controls_of(carried, {name: adapter[name] for name in spec.names(factors)})
    return _joined(record, to_arrays(as_controls(controls)))


def with_change(record: ArrayRecord, change: Adapter) -> ArrayRecord:
    """Return an update's record with the change of the site's variates beside it.

    Raises:
        UpdateError: FT504, the change is not finite.
    """
    encoded, _ = encode(protect(Delta(tensors=as_controls(change))), _EXACT)
    return _joined(record, to_arrays(encoded))


def read_controls(
    record: ArrayRecord,
    spec: AdapterSpec,
    factors: Collection[Factor],
    updates: UpdatesConfig,
    *,
    where: str,
) -> tuple[ArrayRecord, Adapter]:
    """Take the variates of a round's factors out of a record, which is left with the rest.

    Raises:
        UpdateError: As of `fedtune.updates.decode.decode`: a change of variates may be no longer than an
            update.
    """
    names = {control_name(name): name for name in spec.shapes}
    beside = ArrayRecord({names[name]: array for name, array in record.items() if name in names})
    rest = ArrayRecord({name: array for name, array in record.items() if name not in names})
    return rest, dict(decode(beside, spec, factors, updates, where=f"{where}, control variates").tensors)


def _joined(first: ArrayRecord, second: ArrayRecord) -> ArrayRecord:
    return ArrayRecord(dict(first.items()) | dict(second.items()))
