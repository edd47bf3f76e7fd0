"""What a base model is, as one hash on which all machines of a federation agree."""

from __future__ import annotations

import hashlib
import json

from fedtune.config.schema import ModelConfig
from fedtune.models.cache import cache_folder, file_sha256
from fedtune.models.resolve import resolve

__all__ = ["base_hash"]

_NO_ARCHITECTURE = frozenset({"_name_or_path", "dtype", "torch_dtype", "transformers_version"})


def base_hash(config: ModelConfig) -> str:
    """Return a hash of what the base is: its weights and, of config.json, all that the weights run through.

    It names the unquantized files: it is the same on every machine and for every quantization and compute
    type. Hashes of large files are kept in the cache.

    Returns:
        SHA-256 in hexadecimal.

    Raises:
        ModelError: FT301 to FT303, the files are not there.
    """
    source = resolve(config)
    cache = cache_folder(config)
    if source.kind == "gguf":
        parts = [["gguf", file_sha256(source.path, cache)]]
    else:
        described = json.loads((source.path / "config.json").read_text(encoding="utf-8"))
        kept = {key: value for key, value in described.items() if key not in _NO_ARCHITECTURE}
        parts = [["config", json.dumps(kept, sort_keys=True)]]
        parts += [[file.name, file_sha256(file, cache)] for file in sorted(source.path.glob("*.safetensors"))]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
