"""Which axis of a batch of images holds the channels, as far as its shape shows it."""

_FEW = 4  # the most channels that are taken for channels: red, green, blue and alpha


def axis_of(shape: tuple[int, ...]) -> int | None:
    """Return 1 or the last axis, if it has few entries and the other more; else None."""
    is_first, is_last = shape[1] <= _FEW, shape[-1] <= _FEW
    if is_first == is_last:
        return None
    return 1 if is_first else len(shape) - 1
