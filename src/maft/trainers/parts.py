"""Batches in parts of about equal length, so that little of what is computed is padding."""


def lengths_to_parts(lengths: list[int], limit: int) -> list[list[int]]:
    """Group places by length so that a part has at most `limit` tokens with its padding, or one row.

    >>> lengths_to_parts([90, 300, 100, 95], 310)
    [[0, 3, 2], [1]]
    """
    parts: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: lengths[place]):
        if parts and (len(parts[-1]) + 1) * lengths[place] <= limit:
            parts[-1].append(place)
        else:
            parts.append([place])
    return parts
