"""Short names for people: `bert.encoder.layer.3.attention.self.query.weight` is layer 3's attention query."""

# Words that say nothing to a reader who knows the layer.
SILENT = frozenset({"weight", "dense", "self"})


def place(name: str) -> tuple[str, str]:
    """Return where a weight is and what it does there.

    Args:
        name: a parameter's full name.

    Returns:
        The layer's number, or the module's name outside the layers; and the weight's kind: what follows
        the layer's number, or again the module's name.
    """
    parts = name.split(".")
    number = next((index for index, part in enumerate(parts) if part.isdigit()), None)
    if number is not None:
        return parts[number], spoken(parts[number + 1 :])
    # The model's own prefix ("bert") is the same everywhere.
    kind = spoken(parts[1:] if len(parts) > 2 else parts)
    return kind, kind


def spoken(parts: list[str]) -> str:
    """Join the telling parts of a name; all of them when none tells anything."""
    return " ".join([part for part in parts if part not in SILENT] or parts)
