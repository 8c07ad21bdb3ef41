"""What shows whether a result can be believed, and what it was made with."""

import platform
from typing import Any, cast

import jax
import numpy as np

from jaxrobust._core import checks, threat_rows
from jaxrobust._core.versions import versions
from jaxrobust.evaluation import _text
from jaxrobust.types import Attack, Threat


def audit(
    x_adv: np.ndarray, x: np.ndarray, distance: np.ndarray, threat: Threat
) -> dict[str, Any]:
    """Count the points outside ball, bounds or mask, beyond float32 rounding."""
    # One ulp of each coordinate, in the norm of the threat.
    power = 1 / threat.order if threat.order else 1.0
    ulp = np.spacing(np.abs(x).max().astype(np.float32)) * x[0].size ** power
    radius = np.broadcast_to(np.asarray(threat.eps, np.float32), distance.shape)
    outside_bounds = outside_mask = 0
    if threat.bounds is not None:
        lower, upper = (np.asarray(bound, x_adv.dtype) for bound in threat.bounds)
        outside = (x_adv < lower) | (x_adv > upper)
        outside_bounds = int(outside.reshape(len(x_adv), -1).any(axis=1).sum())
    if threat.mask is not None:
        moved = (x_adv != x) & (np.asarray(threat.mask) == 0)
        outside_mask = int(moved.reshape(len(x_adv), -1).any(axis=1).sum())
    return {
        "outside_ball": int((distance > radius * (1 + 1e-6) + ulp).sum()),
        "outside_bounds": outside_bounds,
        "outside_mask": outside_mask,
        "not_finite": int((~np.isfinite(x_adv)).sum()),
        "min": float(x_adv.min()),
        "max": float(x_adv.max()),
    }


def warn_of_violations(audit: dict[str, Any], total: int) -> None:
    """Warn, at the user's line, if points are not what the threat allows."""
    found = _text.audit(audit, total)
    if found:
        checks.warn_user(" ".join(found))


def settings(
    attack: Attack,
    threat: Threat,
    key: jax.Array | None,
    batch_size: int,
    num_devices: int,
) -> dict[str, Any]:
    """Return what was run, with what, where."""
    seed = None if key is None else np.asarray(jax.random.key_data(key)).tolist()
    return {
        "attack": repr(attack),
        "threat": repr(threat),
        "norm": threat_rows.name_of(threat),
        "eps": np.asarray(threat.eps).tolist(),
        "key": seed if key is None or key.ndim == 0 else "one for each example",
        "batch_size": batch_size,
        "matmul_precision": cast(Any, jax.config).jax_default_matmul_precision
        or "default",
        "device": jax.devices()[0].device_kind,
        "num_devices": num_devices,
        "python": platform.python_version(),
        "versions": versions(),
    }
