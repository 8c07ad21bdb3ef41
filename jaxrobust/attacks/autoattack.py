"""AutoAttack: an ensemble without anything to tune, for claims of robustness."""

import dataclasses
from typing import Any

from jaxrobust import losses
from jaxrobust._core import pytree
from jaxrobust.attacks import fast
from jaxrobust.attacks._base import Attack
from jaxrobust.attacks.apgd import APGD
from jaxrobust.attacks.cost import Cost
from jaxrobust.attacks.fab import FAB
from jaxrobust.attacks.square import Square, layout
from jaxrobust.attacks.targets import Targets
from jaxrobust.attacks.wrappers import Restarts, WorstOf
from jaxrobust.threats import L2
from jaxrobust.types import Array, Loss, Threat

VERSIONS = ("standard", "plus", "rand", "fast")


@pytree.register
@dataclasses.dataclass(frozen=True, repr=False)
class AutoAttack(Attack):
    """The attacks of AutoAttack, one after the other; made by `autoattack`.

    Croce & Hein 2020, arXiv:2003.01690.

    Args:
      version: "standard", "plus", "rand" or "fast".
      channel_axis: The axis of the batch that holds the channels, see `Square`.
      confirm: Whether "fast" ends with the parts of "standard".

    Raises:
      ValueError: If there is no such version or axis, or nothing to confirm.

    Example:
      >>> print(AutoAttack().total_cost())
      Cost(gradients=1910, forwards=5924)
    """

    papers = ("croce2020autoattack",)

    version: str = pytree.static("standard")
    channel_axis: layout.ChannelAxis = pytree.static("auto")
    confirm: bool = pytree.static(False)

    def __post_init__(self):
        if self.version not in VERSIONS:
            raise ValueError(
                f"autoattack({self.version!r}): choose one of {', '.join(VERSIONS)}."
            )
        if self.confirm and self.version != "fast":
            raise ValueError(
                f'autoattack({self.version!r}, confirm=True): only "fast" is confirmed, by '
                'the parts of "standard".'
            )
        layout.check(self.channel_axis, "autoattack")

    needs_key = True
    takes = losses.LABELS

    def parts(self, y: Any, threat: Threat) -> tuple[tuple[Any, Any], ...]:
        return self._worst_of(threat).parts(y, threat)

    def stages(self, *, threat: Threat) -> tuple[tuple[str, Any], ...]:
        """Return name and attack of each part, in the order of the reference.

        With C classes there are at most C - 1 targets, and losses that need more classes
        than there are fall back to the margin (`losses.dlr`).

        Args:
          threat: `Linf`, `L2` or `L1`; the l1 version has more restarts, fewer targets.
        """
        is_l1 = threat.order == 1
        square = Square(channel_axis=self.channel_axis)
        dlr, targeted = losses.dlr, losses.dlr_targeted
        apgd_t = Targets(APGD(loss=targeted), 5 if is_l1 else 9)
        fab_t = Targets(FAB(targeted=True), 9)
        if self.version == "fast":
            standard = AutoAttack(channel_axis=self.channel_axis)
            confirming = standard.stages(threat=threat) if self.confirm else ()
            return (*fast.stages(square), *confirming)
        if self.version == "rand":
            # The reference takes the loss of each draw, then the mean.
            of_draws = map(losses.expected, (losses.cross_entropy, dlr))
            apgd_ce, apgd_dlr = (APGD(loss=loss) for loss in of_draws)
            return ("APGD-CE", apgd_ce), ("APGD-DLR", apgd_dlr)
        if self.version == "plus":
            return (
                ("APGD-CE", Restarts(APGD(), 5)),
                ("APGD-DLR", Restarts(APGD(loss=dlr), 5)),
                # The first run starts at x, the other four do not.
                ("FAB", FAB()),
                ("FAB restarts", Restarts(FAB(random_start=True), 4)),
                ("Square", square),
                ("APGD-T", apgd_t),
                ("FAB-T", fab_t),
            )
        return (
            ("APGD-CE", Restarts(APGD(), 5) if is_l1 else APGD()),
            ("APGD-T", apgd_t),
            ("FAB-T", fab_t),
            ("Square", square),
        )

    @property
    def goal(self) -> Loss:
        return losses.margin

    def total_cost(self, num_classes: int = 10) -> Cost | None:
        return self._worst_of(L2(0.0)).total_cost(num_classes)

    def admits(self, number: int, margins: Array, is_open: Array) -> Array:
        if self.version != "fast":
            return super().admits(number, margins, is_open)
        return fast.admits(number, margins, is_open)

    def run(self, logits_fn, x, y, threat, keys) -> Array:
        whole = self._worst_of(threat)
        if self.version == "fast":
            return fast.run(whole.attacks, logits_fn, x, y, threat, keys)
        return whole.run(logits_fn, x, y, threat, keys)

    def _worst_of(self, threat: Threat) -> WorstOf:
        return WorstOf(tuple(attack for _, attack in self.stages(threat=threat)))


def autoattack(
    version: str = "standard",
    *,
    channel_axis: layout.ChannelAxis = "auto",
    confirm: bool = False,
) -> AutoAttack:
    """Return AutoAttack, the standard evaluation of robust classifiers.

    Croce & Hein 2020, arXiv:2003.01690; l1: Croce & Hein 2021, arXiv:2103.01208. Orders,
    numbers of steps, targets and restarts are those of the reference implementation
    (fra31/auto-attack).

    - "standard": APGD-CE, APGD-T on 9 targets, FAB-T on 9 targets, Square with 5000
      queries; for `L1` APGD-CE has 5 restarts and APGD-T 5 targets.
    - "plus": APGD-CE, APGD-DLR and FAB with 5 restarts, Square, APGD-T, FAB-T. For `L1`
      APGD runs in shrinking balls here too (`APGD.radii`), and APGD-T on 5 targets;
      the reference does so in "standard" only, and advises against "plus" for this norm.
    - "rand", for random models: APGD-CE and APGD-DLR on the mean loss of the draws. Pass
      the model through `jr.randomized(model_fn, num_samples=20, key=...)`. Where the
      reference keeps a point after one lucky draw, `jr.evaluate` judges it on fresh ones.

    - "fast", not of the paper: ODI (Tashiro et al. 2020, arXiv:2003.06878) and Square,
      with most of the work on the examples that are near to falling; see `attacks.fast`.

    Args:
      version: "standard", "plus", "rand" or "fast".
      confirm: Whether "fast" ends with the parts of "standard", on what is still open.
      channel_axis: The axis of the batch that holds the channels, for Square: -1 for
        `[B, H, W, C]`, 1 for `[B, C, H, W]`, None without channels. "auto" finds up to 4
        channels in the first or the last axis and refuses other images, see `Square`.

    Returns:
      An attack; `jr.evaluate(logits_fn, x, y, attack=jr.autoattack(), ...)` runs its
      parts on what the earlier ones have left.

    Raises:
      ValueError: If there is no such version; by the attack, if `channel_axis` is not an
        axis of `x`, or "auto" and the shape of `x` ambiguous.

    Example:
      >>> import jaxrobust as jr
      >>> for name, part in jr.autoattack().stages(threat=jr.L2(0.5)):
      ...     print(name, part)
      APGD-CE APGD()
      APGD-T Targets(APGD(loss=dlr_targeted))
      FAB-T Targets(FAB(targeted=True))
      Square Square()
    """
    return AutoAttack(version, channel_axis, confirm)
