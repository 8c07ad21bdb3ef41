"""What tests count: compilations."""

import contextlib

import jax


@contextlib.contextmanager
def count_compilations():
    """Count XLA compilations, the `jax.make_jaxpr` of an eager call not among them."""
    events = []

    def listen(name, duration, **_):
        del duration
        if name == "/jax/core/compile/backend_compile_duration":
            events.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
