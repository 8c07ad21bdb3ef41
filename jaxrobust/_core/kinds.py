"""What the `y` of a loss may be; `jaxrobust.losses` shows these names to users."""

LABELS = "labels"  # integers [B], the classes to leave
TARGETS = "targets"  # integers [B], the classes to reach
PAIR = "labels and targets"  # a tuple of both
LOGITS = "clean logits"  # [B, C]
VALUES = "values"  # floats [B, ...]
MULTI_HOT = "multi-hot labels"  # [B, C], 0 or 1
POSITIONS = "labels of positions"  # integers [B, ...], one for each pixel or token
ANYTHING = "anything"  # a loss that does not say
