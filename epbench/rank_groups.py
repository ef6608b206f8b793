"""Which ranks talk to each other on an axis of a layout: the partition of the world that its groups make.

Both views of a world are row-major over the same ranks (facts of :mod:`epbench.layout`), so a group of an axis is
``degree`` ranks, ``stride`` apart, and all groups of the axis together are every rank once. Different axes of
different layouts often make one partition: ``ep`` of ``dp4-ep4`` and ``fsdp`` of ``dp4`` are the same wires.
"""

from collections.abc import Iterable

from epbench.layout import Layout

__all__ = ["AXES", "Groups", "axes_by_groups", "groups_of"]

Groups = tuple[tuple[int, ...], ...]  # ranks of each group in ascending order, groups by their lowest rank

AXES = ("world", "dp_replicate", "fsdp", "tp", "dp_shard", "cp", "efsdp", "ep", "etp")


def _degree_and_stride(layout: Layout) -> dict[str, tuple[int, int]]:
    """Of each axis; fsdp is dp_shard x cp, efsdp what ep and etp leave of a replica."""
    replica = layout.dp_shard * layout.cp * layout.tp
    return {
        "world": (layout.world_size, 1),
        "dp_replicate": (layout.dp_replicate, replica),
        "fsdp": (layout.dp_shard * layout.cp, layout.tp),
        "tp": (layout.tp, 1),
        "dp_shard": (layout.dp_shard, layout.cp * layout.tp),
        "cp": (layout.cp, layout.tp),
        "efsdp": (layout.efsdp, layout.ep * layout.etp),
        "ep": (layout.ep, layout.etp),
        "etp": (layout.etp, 1),
    }


def groups_of(layout: Layout, axis: str) -> Groups | None:
    """The groups of one of ``AXES`` of a legal layout; None for any other name, and for an axis of degree 1."""
    degree, stride = _degree_and_stride(layout).get(axis, (1, 1))
    if degree == 1:
        return None
    return tuple(
        tuple(range(first, first + degree * stride, stride))
        for block in range(0, layout.world_size, degree * stride)
        for first in range(block, block + stride)
    )


def axes_by_groups(layouts: Iterable[Layout]) -> dict[Groups, dict[str, list[str]]]:
    """Every partition that the layouts use: axis -> slugs of the layouts where that axis makes it.

    In order of first use, the world's first within a layout. A layout of one rank uses none.
    """
    found: dict[Groups, dict[str, list[str]]] = {}
    for layout in dict.fromkeys(layouts):
        for axis in AXES:
            groups = groups_of(layout, axis)
            if groups is not None:
                found.setdefault(groups, {}).setdefault(axis, []).append(layout.slug)
    return found
