"""A model, not a measurement, of how long a training step takes on more devices.

step = operations / (peak · utilisation) + collectives · latency · log₂ n + time on the links. An all-reduce of b bytes
over n devices sends 2(n − 1)/n · b from each of them. Where n is more than a node, it is reduced in the node first, and
every device then exchanges its part of the result, b over the devices of a node, with its peers in the other nodes.
Nothing overlaps, and devices wait for nothing else.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

DEVICE_COUNTS = tuple(2**power for power in range(9))
IMAGES_PER_DEVICE = 64
# Assumed; a ResNet's convolutions with few channels, batch normalisation and augmentation are far from the peak.
UTILISATION = 0.3


class Machine(NamedTuple):
    """A kind of device and its links.

    Attributes:
        name: what it is called.
        peak: dense products in bfloat16, operations per second; the vendor's peak.
        node: devices that fast links connect, or None for all of them.
        link: bytes per second that a device sends over the fast links; the vendor's peak.
        network: bytes per second that a device sends to other nodes; the vendor's peak.
        latency: assumed seconds that a collective takes for every doubling of the devices in a node.
        network_latency: the same for every doubling of the nodes.
    """

    name: str
    peak: float
    node: int | None
    link: float
    network: float
    latency: float
    network_latency: float


MACHINES = (
    Machine("TPU v5e", 197e12, None, 200e9, math.inf, 2e-6, 0.0),
    Machine("TPU v5p", 459e12, None, 600e9, math.inf, 2e-6, 0.0),
    Machine("H100, H200", 989e12, 8, 450e9, 50e9, 5e-6, 10e-6),
)


def communication_seconds(machine: Machine, devices: int, num_bytes: float, collectives: float) -> float:
    """The time that all-reduces take, one after the other.

    Args:
        machine: the devices.
        devices: their number.
        num_bytes: bytes of all results.
        collectives: how many there are.

    Returns:
        Seconds.
    """
    inside = min(devices, machine.node or devices)
    nodes = devices / inside
    links = 2 * (inside - 1) / inside * num_bytes / machine.link
    network = 2 * (nodes - 1) / nodes * num_bytes / inside / machine.network
    latency = machine.latency * math.log2(inside) + machine.network_latency * math.log2(nodes)
    return links + network + collectives * latency


def step_seconds(step: Mapping[str, Any], machine: Machine, devices: int, images: int) -> float:
    """The time of a training step.

    Args:
        step: one of those that `collectives.measure` returned, of a mesh with `data` alone.
        machine: the devices.
        devices: their number.
        images: images in the batch of all devices.

    Returns:
        Seconds.
    """
    operations = step["operations"] / step["batch_size"] * images / devices
    num_bytes = sum(row["bytes"] for row in step["rows"])
    communication = communication_seconds(machine, devices, num_bytes, step["collectives"])
    return operations / (machine.peak * UTILISATION) + communication


def model(steps: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Applies the model to steps, machines and numbers of devices.

    Args:
        steps: what `collectives.measure` returned, of meshes with `data` alone.

    Returns:
        Rows {"config", "variant", "machine", "batch", "devices", "images", "seconds", "images_per_second",
        "efficiency"}: `batch` is "fixed" (the config's, shared by all devices, at most one device an image) or
        "growing" (with the devices); the efficiency is relative to one device.
    """
    rows = []
    for step in steps:
        for machine in MACHINES:
            for batch in ("fixed", "growing"):
                alone = None
                for devices in DEVICE_COUNTS:
                    images = step["batch_size"] if batch == "fixed" else IMAGES_PER_DEVICE * devices
                    seconds = step_seconds(step, machine, devices, images)
                    speed = images / seconds
                    alone = alone or speed
                    row = {"config": step["config"], "variant": step["variant"], "machine": machine.name}
                    row |= {"batch": batch, "devices": devices, "images": images, "seconds": seconds}
                    rows.append(row | {"images_per_second": speed, "efficiency": speed / (alone * devices)})
    return rows


def markdown_table(rows: Sequence[Mapping[str, Any]], counts: Sequence[int] = (1, 8, 64, 256)) -> str:
    """The modelled steps as a Markdown table, milliseconds and efficiency.

    Args:
        rows: what `model` returned.
        counts: the numbers of devices that are shown.

    Returns:
        The table.
    """
    lines = [
        f"| step | batch | devices | {' | '.join(f'n = {count}, ms' for count in counts)} |",
        f"| --- | --- | --- |{' ---: |' * len(counts)}",
    ]
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["devices"] in counts:
            groups.setdefault((f"{row['config']}:{row['variant']}", row["batch"], row["machine"]), []).append(row)
    for name, group in groups.items():
        cells = [f"{1e3 * row['seconds']:.2f} ({100 * row['efficiency']:.0f}%)" for row in group]
        lines.append(f"| {' | '.join((*name, *cells))} |")
    return "\n".join(lines)


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws images per second and efficiency against the number of devices, for HamJEPA on both data sets.

    Args:
        rows: what `model` returned.
        path: the picture; its directories are made.
    """
    from matplotlib.figure import Figure

    configs = list(dict.fromkeys(row["config"] for row in rows))
    figure = Figure(figsize=(11, 3.6 * len(configs)), layout="constrained")
    panels = figure.subplots(len(configs), 2, sharex=True, squeeze=False)
    for config, (speed, efficiency) in zip(configs, panels, strict=True):
        of_config = [row for row in rows if row["config"] == config and row["variant"] == "hamjepa"]
        fixed = next(row["images"] for row in of_config if row["batch"] == "fixed")
        labels = {"growing": f"{IMAGES_PER_DEVICE} images a device", "fixed": f"{fixed} images in all"}
        for number, machine in enumerate(MACHINES):
            for batch, style in (("growing", "-"), ("fixed", "--")):
                line = [row for row in of_config if (row["machine"], row["batch"]) == (machine.name, batch)]
                devices = [row["devices"] for row in line]
                settings = {"color": f"C{number}", "linestyle": style, "marker": "o", "markersize": 3}
                label = f"{machine.name}, {labels[batch]}"
                speed.plot(devices, [row["images_per_second"] for row in line], label=label, **settings)
                efficiency.plot(devices, [100 * row["efficiency"] for row in line], label=label, **settings)
        speed.set(title=f"{config}, HamJEPA, modelled", ylabel="images/s", xscale="log", yscale="log")
        efficiency.set(title=f"{config}, HamJEPA, modelled", ylabel="efficiency, % of n × one device", xscale="log")
        efficiency.set_ylim(0, 105)
        speed.legend(fontsize=7, handlelength=4)
        for panel in (speed, efficiency):
            panel.set_xticks(DEVICE_COUNTS, [str(count) for count in DEVICE_COUNTS])
            panel.minorticks_off()
            panel.grid(alpha=0.3)
            panel.set_xlabel("devices n")
            panel.xaxis.set_tick_params(labelbottom=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
