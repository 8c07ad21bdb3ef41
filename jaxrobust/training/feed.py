"""Where the batches come from: arrays that lie on the device."""

import jax


def epoch_order(key: jax.Array, epoch: int, num_examples: int) -> jax.Array:
    """Return the order of the examples in an epoch, `[num_examples]`."""
    return jax.random.permutation(jax.random.fold_in(key, epoch), num_examples)


class Arrays:
    """Inputs and labels on the device, in another order in each epoch.

    Attributes:
      steps_per_epoch: steps of an epoch; the last N mod batch_size examples are left out.
      has_failed: as of `Batches`.
    """

    def __init__(self, x: jax.Array, y: jax.Array, batch_size: int, key: jax.Array):
        """Take the data; the orders are drawn from `key`."""
        self.x, self.y = x, y
        self.steps_per_epoch: int = len(x) // batch_size
        self.has_failed = False  # what lies on the device does not
        self._key = key
        self._epoch, self._order = -1, key

    def at(self, epoch: int, step: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return x, y and the order of an epoch, in which a step finds its batch."""
        del step
        if epoch != self._epoch:
            self._order = epoch_order(self._key, epoch, len(self.x))
            self._epoch = epoch
        return self.x, self.y, self._order

    def check_epochs(self, num_epochs: int) -> None:
        """Do nothing: arrays are for any number of epochs."""

    def ahead(self) -> None:
        """Do nothing: all is there."""
