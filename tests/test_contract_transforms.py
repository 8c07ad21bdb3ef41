"""The laws of the design, continued: transformations, devices, hard models, keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxrobust as jr
