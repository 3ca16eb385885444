"""Draw the logo, assets/logo.png: a crescent, and one vector in the positions that rotary embeddings turn it to.

Its length shrinks as it turns away, as XPOS has it.

    python assets/logo.py
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Circle, PathPatch, Polygon
from matplotlib.path import Path as Outline

NIGHT, DUSK, MOON = "#080d24", "#2a3b86", "#f7e6ad"
FAN = LinearSegmentedColormap.from_list("fan", [MOON, "#a9b9ff", "#4d63d2"])
SKY = LinearSegmentedColormap.from_list("sky", [NIGHT, DUSK])


def crescent(radius: float, hollow: float, shift: float, angle: float) -> Outline:
    """A disc of `radius` without a disc of `hollow` times that, moved by `shift` radii along `angle`."""
    crossing = (1 - hollow**2 + shift**2) / (2 * shift)
    outer = np.arccos(crossing)
    inner = np.arctan2(np.sin(outer), crossing - shift)
    there = np.exp(1j * np.linspace(outer, 2 * np.pi - outer, 300))
    back = shift + hollow * np.exp(1j * np.linspace(2 * np.pi - inner, inner, 300))
    edge = np.concatenate([there, back]) * radius * np.exp(1j * angle)
    return Outline(np.column_stack([edge.real, edge.imag]))


def arrow(start: float, length: float, angle: float, width: float) -> np.ndarray:
    """Corners of an arrow that points at `angle`, from `start` to `length` away from the origin."""
    head, half = 3.2 * width, 1.35 * width
    side = [(start, 0.28 * width), (length - head, 0.5 * width), (length - 1.08 * head, half), (length, 0)]
    corners = np.array([complex(x, y) for x, y in [*side, *((x, -y) for x, y in side[-2::-1])]])
    turned = corners * np.exp(1j * angle)
    return np.column_stack([turned.real, turned.imag])


def draw(path: Path, pixels: int = 512) -> None:
    """Write the logo as a square PNG with a transparent surround."""
    figure = plt.figure(figsize=(4, 4), dpi=pixels / 4)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(-1.01, 1.01), ylim=(-1.01, 1.01), aspect="equal")
    axes.axis("off")
    badge = axes.add_patch(Circle((0, 0), 0.985, facecolor=NIGHT, edgecolor="none"))
    y, x = np.mgrid[-1:1:400j, -1:1:400j]
    glow = np.exp(-((x + 0.1) ** 2 + (y - 0.05) ** 2) / 0.32)
    sky = axes.imshow(glow, cmap=SKY, extent=(-1, 1, -1, 1), origin="lower", vmin=0, vmax=1.15, zorder=2)
    sky.set_clip_path(badge)
    axes.add_patch(Circle((0, 0), 0.965, facecolor="none", edgecolor=MOON, linewidth=2.4, zorder=3))
    tilt = np.radians(24)
    moon = crescent(radius=0.76, hollow=0.80, shift=0.32, angle=tilt)
    pivot = -0.06 * np.array([np.cos(tilt), np.sin(tilt)])
    axes.add_patch(PathPatch(moon, facecolor=MOON, edgecolor="none", zorder=4))
    turns = 6
    for turn in range(turns):
        angle, length = tilt + np.radians(32.5 - 13 * turn), 0.94 * 0.945**turn
        corners = arrow(0.13, length, angle, 0.043) + pivot
        axes.add_patch(Polygon(corners, facecolor=FAN(turn / (turns - 1)), edgecolor="none", zorder=20 - turn))
    axes.add_patch(Circle(pivot, 0.062, facecolor=MOON, edgecolor="none", zorder=20))
    for x0, y0, size in ((0.02, 0.87, 5), (0.62, -0.58, 10), (-0.84, 0.26, 6), (0.80, -0.33, 4), (0.33, -0.82, 4)):
        axes.scatter([x0], [y0], s=size, color=MOON, linewidths=0, zorder=6)
    figure.savefig(path, transparent=True, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    draw(Path(__file__).with_name("logo.png"))
