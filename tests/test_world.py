"""Attacks in the world: a sound, the glasses, the turtle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrobust as jr

pytestmark = pytest.mark.slow

RATE, LENGTH = 800, 200  # samples in a second, samples
TONES = (50.0, 110.0, 170.0)
KEY = jax.random.key(0)


def tone_detector(x):
    """The log energy at each of three frequencies: a command word recogniser."""
    time = jnp.arange(LENGTH) / RATE
    waves = jnp.exp(2j * jnp.pi * jnp.array(TONES)[:, None] * time[None])
    return jnp.log(jnp.abs(x @ waves.T.astype(jnp.complex64)) ** 2 + 1e-3)


def record(labels):
    time = np.arange(LENGTH) / RATE
    tones = np.array(TONES)[np.asarray(labels)][:, None]
    noise = 0.1 * np.random.default_rng(0).normal(size=(len(labels), LENGTH))
    return jnp.asarray(0.3 * np.sin(2 * np.pi * tones * time) + noise, jnp.float32)


Y = jnp.array([0, 1, 2, 0, 1, 2])
WAVES = record(Y)


def test_a_hidden_voice_command():
    """Inputs `[B, T]` in [-1, 1] that are no images: every recording says the target."""
    target = (Y + 1) % 3
    assert (tone_detector(WAVES).argmax(-1) == Y).all()
    threat = jr.L2(3.0, bounds=(-1.0, 1.0))
    attack = jr.PGD(num_steps=20, loss=jr.losses.targeted(jr.losses.cross_entropy))
    heard = attack(tone_detector, WAVES, target, threat=threat, key=KEY)
    assert (tone_detector(heard).argmax(-1) == target).all()
    # Where it is added is where it is heard: at the two tones, not beside them.
    spectrum = np.abs(np.fft.rfft(np.asarray(heard - WAVES))) ** 2
    bands = np.array([tone * LENGTH / RATE for tone in TONES]).round().astype(int)
    near = np.isin(np.arange(spectrum.shape[1]), np.add.outer(bands, [-1, 0, 1]))
    assert spectrum[:, near].sum() > 0.8 * spectrum.sum()


def test_the_command_survives_the_room():
    """A random delay: an attack on the expectation works for delays it has not seen."""

    def room(wave, key):
        shift = jax.random.randint(key, (), -20, 21)
        return jnp.roll(wave, shift) + 0.1 * jax.random.normal(key, wave.shape)

    target = (Y + 1) % 3
    model = jr.eot(tone_detector, room, key=KEY, num_samples=8)
    loss = jr.losses.targeted(jr.losses.negative_log_prob)
    attack = jr.PGD(num_steps=20, loss=loss, keep_best=False)
    threat = jr.L2(4.0, bounds=(-1.0, 1.0))
    heard = attack(model, WAVES, target, threat=threat, key=KEY)
    keys = jax.random.split(jax.random.key(9), 20)
    rooms = jax.vmap(lambda k: tone_detector(jax.vmap(room, (0, None))(heard, k)))(keys)
    assert (rooms.argmax(-1) == target[None]).mean() > 0.95


def test_the_glasses():
    """A mask: the frame is painted without limit, the face stays as it is."""
    faces = jax.random.uniform(jax.random.key(1), (4, 8, 8, 1))
    weights = jax.random.normal(jax.random.key(2), (64, 5))
    frame = np.zeros((8, 8, 1))
    frame[2:5, 1:7] = 1
    frame[3, [2, 5]] = 0  # eyes

    def model(x):
        return jnp.matmul(x.reshape(len(x), -1) - 0.5, weights, precision="highest")

    threat = jr.Linf(1.0, mask=frame)
    target = jnp.argsort(model(faces), -1)[:, -2]  # someone who looks alike
    attack = jr.PGD(num_steps=40, loss=jr.losses.targeted(jr.losses.cross_entropy))
    worn = attack(model, faces, target, threat=threat, key=KEY)
    assert (model(worn).argmax(-1) == target).all()
    np.testing.assert_array_equal((worn - faces)[:, frame == 0], 0)
