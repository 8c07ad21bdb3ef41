"""FAB in NumPy and float64, one example at a time, for data in [0, 1].

Written from the paper (Croce & Hein 2020, arXiv:1907.02044) and the settings of the
authors' implementation; shares no code with the library. Hyperplanes are met by walking
through the sorted points at which coordinates reach the box.
"""

import numpy as np

DUAL = {np.inf: 1, 2: 2, 1: np.inf}


def project(norm, point, w, b):
    """Return the shortest step from `point` to {z : <w, z> = b} within [0, 1]."""
    excess = w @ point - b
    w = w if excess >= 0 else -w
    excess = abs(excess)
    room = np.where(w > 0, point, 1 - point)  # along -w
    size = abs(w)
    if norm == 1:
        return -np.sign(w) * _spend(size, room, excess)
    speed = size if norm == 2 else np.ones_like(w)
    moving = np.flatnonzero(size > 0)
    moving = moving[np.argsort(room[moving] / speed[moving])]
    step, is_done = np.zeros_like(w), False
    for position, i in enumerate(moving):
        # At s = room_i / speed_i coordinate i stops; all later ones still move.
        s, later = room[i] / speed[i], moving[position:]
        stopped = moving[:position]
        gained = size[stopped] @ room[stopped]
        rate = size[later] @ speed[later]
        if not is_done and gained + rate * s >= excess:
            step[later] = (excess - gained) / rate * speed[later]
            is_done = True
        if not is_done:
            step[i] = room[i]
    return -np.sign(w) * step


def _spend(size, room, excess):
    """Move the coordinates of the largest slopes first."""
    step = np.zeros_like(size)
    for i in np.argsort(-size):
        if size[i] == 0 or excess <= 0:
            break
        step[i] = min(room[i], excess / size[i])
        excess -= size[i] * step[i]
    return step


def towards_target(logits, jacobian, label, target):
    """Return the one difference of logits, its gradient: FAB-T."""
    return (
        np.array([logits[target] - logits[label]]),
        (jacobian[target] - jacobian[label])[None],
    )


def towards_any(logits, jacobian, label):
    """Return the differences to all classes, that to its own far away."""
    gaps = logits - logits[label]
    gaps[label] = 1e10
    return gaps, jacobian - jacobian[label]


def fab(
    x,
    label,
    linearize,
    predict,
    norm,
    start,
    num_steps,
    alpha_max=0.1,
    eta=1.05,
    beta=0.9,
):
    """Return the iterates after each step, the nearest adversarial point, its distance.

    `linearize(z)` gives differences of logits `[K]` and their gradients `[K, d]`.
    """
    z, iterates, nearest, distance = start.copy(), [], x, np.inf
    for _ in range(num_steps):
        gaps, gradients = linearize(z)
        dual = np.linalg.norm(gradients, DUAL[norm], axis=1)
        k = np.argmin(abs(gaps) / (1e-12 + dual))
        w, b = gradients[k], gradients[k] @ z - gaps[k]
        d1, d2 = project(norm, z, w, b), project(norm, x, w, b)
        a1, a2 = (max(np.linalg.norm(d, norm), 1e-8) for d in (d1, d2))
        alpha = min(a1 / (a1 + a2), alpha_max)
        z = np.clip((1 - alpha) * (z + eta * d1) + alpha * (x + eta * d2), 0, 1)
        if predict(z) != label:
            if np.linalg.norm(z - x, norm) < distance:
                nearest, distance = z.copy(), np.linalg.norm(z - x, norm)
            z = x + beta * (z - x)
        iterates.append(z)
    return np.array(iterates), nearest, distance
