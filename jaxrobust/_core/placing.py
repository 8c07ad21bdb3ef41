"""Where batches live: on one device, or spread over the devices of a mesh."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxrobust._core import batching


@dataclasses.dataclass(frozen=True)
class Placing:
    """Moves batches to devices and back.

    Attributes:
      mesh: Devices over which axis 0 of every batch is spread, all axes of the mesh
        together; None for the default device.
    """

    mesh: Mesh | None = None

    @property
    def num_devices(self) -> int:
        """Number of devices that share a batch."""
        return 1 if self.mesh is None else self.mesh.size

    def spread(self, batch: Any) -> Any:
        """Put the leaves `[B, ...]` of a host batch onto the devices."""
        if self.mesh is None:
            return jax.tree.map(jnp.asarray, batch)
        sharding = self._sharding(self.mesh.axis_names)

        return jax.tree.map(lambda leaf: self._put(leaf, sharding), batch)

    def take(self, batch: Any, rows: np.ndarray) -> Any:
        """Return the chosen rows of a batch on the devices, spread again."""
        sharding = None if self.mesh is None else self._sharding(self.mesh.axis_names)
        choose = jax.jit(_take, out_shardings=sharding)
        return choose(batch, rows)

    def constrain(self, batch: Any) -> Any:
        """Keep a batch spread inside compiled code."""
        if self.mesh is None:
            return batch
        sharding = self._sharding(self.mesh.axis_names)
        return jax.lax.with_sharding_constraint(batch, sharding)

    def replicate(self, tree: Any) -> Any:
        """Copy what every device needs; what is on the mesh already stays where it is."""
        if self.mesh is None:
            return tree
        devices, sharding = set(self.mesh.devices.flat), self._sharding()

        def place(leaf: Any) -> Any:
            if not isinstance(leaf, jax.Array | np.ndarray):
                return leaf
            is_placed = (
                isinstance(leaf, jax.Array) and leaf.sharding.device_set == devices
            )
            return leaf if is_placed else self._put(leaf, sharding)

        return jax.tree.map(place, tree)

    def fetch(self, tree: Any) -> Any:
        """Return the arrays on the host, whole, on every process."""
        if self.mesh is not None and not all(map(_is_here, jax.tree.leaves(tree))):
            tree = jax.jit(_same, out_shardings=self._sharding())(tree)
        return jax.device_get(tree)

    def _put(self, leaf: Any, sharding: NamedSharding) -> jax.Array:
        """Place one array; devices of other processes take host arrays only."""
        if not batching.is_keys(leaf):
            return jax.device_put(np.asarray(leaf), sharding)
        data = jax.device_put(np.asarray(jax.random.key_data(leaf)), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))

    def _sharding(self, axes: Any = None) -> NamedSharding:
        assert self.mesh is not None
        return NamedSharding(
            self.mesh, PartitionSpec(axes) if axes else PartitionSpec()
        )


def _is_here(leaf: Any) -> bool:
    """Whether this process can read the whole array."""
    if not isinstance(leaf, jax.Array):
        return True
    return leaf.is_fully_addressable or leaf.is_fully_replicated


def _same(tree: Any) -> Any:
    return tree


def _take(batch: Any, rows: jax.Array) -> Any:
    return jax.tree.map(lambda leaf: leaf[rows], batch)
