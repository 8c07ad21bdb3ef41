"""What an evaluation will cost at most, before it starts."""

from jaxrobust._core import threat_rows
from jaxrobust.attacks._base import Attack as Declared
from jaxrobust.attacks._base import as_attack
from jaxrobust.attacks.cost import Cost
from jaxrobust.types import Attack, Threat


def estimate(
    attack: Attack, *, threat: Threat, num_examples: int, num_classes: int = 10
) -> Cost | None:
    """Return the evaluations of the model that `evaluate` will need at most.

    As many are needed where no example breaks, and every one that breaks saves some. It
    is what the attacks declare, and the bound of `gradients_needed` and `forwards_needed`
    in `Report.cost`; what idle slots perform comes on top. Not of random models.

    Args:
      attack: Any attack.
      threat: What it may do.
      num_examples: How many are classified correctly, or all.
      num_classes: Number of classes, on which the number of targets depends.

    Returns:
      Gradients and forwards of all examples together; None if an attack does not say.

    Raises:
      TypeError: If `attack` or `threat` is none.

    Example:
      >>> import jaxrobust as jr
      >>> attack = jr.Restarts(jr.PGD(num_steps=40), 10)
      >>> print(estimate(attack, threat=jr.Linf(0.3), num_examples=1000))
      Cost(gradients=410000, forwards=3000)
    """
    threat = threat_rows.as_threat(threat)
    total = Cost(0, 2)  # the clean input, and the point of the report
    for _, part in as_attack(attack).stages(threat=threat):
        cost = of_stage(part, num_classes)
        if cost is None:
            return None
        total = total + cost
    return total * num_examples


def of_stage(
    attack: Declared, num_classes: int, *, is_queued: bool = True
) -> Cost | None:
    """Return what one attack of an evaluation takes for an example that it cannot break."""
    machine = attack.machine
    if machine is None or not is_queued:
        cost = attack.total_cost(num_classes)
        # What it broke, and once more what its point is worth.
        return None if cost is None else cost + Cost(0, 2)
    item = machine.cost(num_classes) * machine.num_calls
    if not machine.is_evaluated:
        item = item + Cost(0, 1)
    return item * attack.num_items(num_classes) + Cost(0, 1)
