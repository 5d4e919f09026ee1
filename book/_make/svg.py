"""What the book's drawings are made of: boxes, arrows, marks and lines of text as elements of an SVG.

A drawing is 340 units wide and its text 14 high, so that on a phone no index is below 11 pixels. Text has the colour of
the page around it, so one file serves both themes. What stands between dollars is set as a formula: `$C^p_i$`.
"""

import math
import re
from html import escape

WIDTH = 340
# The figures' colours (`chapters/plots.py`); each is 3 to 1 or more on the grounds of both themes.
COLOURS = {"visible": "#0072B2", "infrared": "#D55E00", "grey": "#777777", "green": "#009E73", "attack": "#CC79A7"}
STYLE = (
    ".drawing{max-width:100%;background:var(--pst-color-background,#fff);color:var(--pst-color-text-base,#222);"
    "font:14px var(--pst-font-family-base,sans-serif)}.drawing text{fill:var(--pst-color-text-base,#222)}"
    ".drawing .symbol{font:italic 16px serif}.drawing .symbol.index{font-size:12px}.drawing .bold{font-weight:bold}"
) + "".join(f".drawing .{kind}{{color:{colour}}}" for kind, colour in COLOURS.items())
Point = tuple[float, float]


def formula(said: str) -> str:
    """Return a formula such as `C^p_i` as tspans, an exponent above its index."""
    found, height, back = "", 0, 0.0
    for sign, braced, single, plain in re.findall(r"([\^_])(?:\{(.*?)\}|(.))|([^\^_]+)", said):
        shift, letters = {"^": -6, "_": 4}.get(sign, 0), braced or single or plain
        upright = re.sub(r"[^A-Za-zα-ω]+", r'<tspan font-style="normal">\g<0></tspan>', letters)
        place = f'dy="{shift - height}"' + f' dx="{back:g}"' * bool(sign and back)
        found += f'<tspan class="symbol{" index" * bool(sign)}" {place}>{upright}</tspan>'
        height, back = shift, -sum(3.5 if one in "ij" else 6.5 for one in letters) if sign and not back else 0
    return found + f'<tspan dy="{-height}">\u200b</tspan>' * bool(height)


def toward(start: Point, end: Point, far: float) -> Point:
    """Return the point so far from the start on the way to the end; below 0 it lies on the other side."""
    share = far / math.dist(start, end)
    return start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])


class Drawing(list):
    """The elements of an SVG. A `kind` is one of COLOURS, or "ink"; `fill` tints the inside, 1 is solid."""

    def shape(self, tag: str, kind: str = "ink", fill: float = 0, stroke: float = 1.5, dash=False, **where) -> None:
        given = "".join(f' {name}="{at if isinstance(at, str) else f"{at:g}"}"' for name, at in where.items())
        paint = f'fill="currentColor" fill-opacity="{fill:g}"' if fill else 'fill="none"'
        drawn = f'stroke="currentColor" stroke-width="{stroke:g}"' + ' stroke-dasharray="5 4"' * dash
        self.append(f'<{tag} class="{kind}"{given} {paint} {drawn}/>')

    def text(self, x: float, y: float, said: str, anchor: str = "middle", look: str = "plain") -> None:
        """Write a line whose middle is at the height y."""
        parts = (formula(part) if at % 2 else part for at, part in enumerate(escape(said, False).split("$")))
        self.append(f'<text class="{look}" x="{x:g}" y="{y + 5:g}" text-anchor="{anchor}">{"".join(parts)}</text>')

    def box(self, x: float, y: float, width: float, height: float, *lines: str, kind="ink", fill: float = 0.08) -> None:
        self.shape("rect", kind, fill, x=x, y=y, width=width, height=height, rx=5)
        for row, line in enumerate(lines):
            self.text(x + width / 2, y + height / 2 + 18 * row - 9 * (len(lines) - 1), line)

    def sign(self, x: float, y: float, said: str, kind: str) -> None:
        self.shape("circle", kind, 0.12, cx=x, cy=y, r=10)
        self.text(x, y, said)

    def arrow(self, *points: Point, kind: str = "ink", dash=False, heads: tuple[int, ...] = (-1,)) -> None:
        """Draw a line through points with a head at the last one, or at those of `heads` (0: the first)."""
        line = list(points)
        for at in heads:
            (x, y), (u, v) = points[at], toward(points[at], points[-2 if at else 1], 8)
            line[at], side = (u, v), (0.55 * (y - v), 0.55 * (u - x))
            corners = f"M{x:.4g} {y:.4g}L{u + side[0]:.4g} {v + side[1]:.4g}L{u - side[0]:.4g} {v - side[1]:.4g}z"
            self.shape("path", kind, 1, 0.5, d=corners)
        self.shape("polyline", kind, stroke=2, dash=dash, points=" ".join(f"{x:.4g},{y:.4g}" for x, y in line))

    def down(self, x: float, *heights: float) -> None:
        """Draw arrows from the first height to the second, from the third to the fourth and so on."""
        for top, end in zip(heights[::2], heights[1::2], strict=True):
            self.arrow((x, top), (x, end))

    def mark(self, kind: str, at: Point, size: float = 5, fill: float = 1) -> None:
        """Draw a circle for visible, a triangle for infrared, a square for grey."""
        (x, y), half = at, 0.9 * size
        if kind == "visible":
            return self.shape("circle", kind, fill, cx=x, cy=y, r=size)
        square = f"M{x - half:g} {y - half:g}h{2 * half:g}v{2 * half:g}h{-2 * half:g}z"
        triangle = f"M{x:g} {y - 1.3 * size:g}l{1.1 * size:g} {2.2 * size:g}h{-2.2 * size:g}z"
        return self.shape("path", kind, fill, d=triangle if kind == "infrared" else square)

    def grid(self, x: float, y: float, size: float, layers: int = 3, shades: str = "") -> None:
        """Draw 4 x 4 bins from a corner on, other channels behind them; shades: a digit a bin, 9 the darkest."""
        step = size / 4
        lines = "".join(f"M{x:g} {y + step * at:g}h{size}M{x + step * at:g} {y:g}v{size}" for at in range(5))
        behind = "".join(f"M{x + 5 * at:g} {y - 5 * at + 5:g}v-5h{size}v{size}h-5" for at in range(1, layers))
        self.shape("path", stroke=1, d=lines + behind)
        for place, shade in enumerate(shades):
            bin_at = {"x": x + place % 4 * step, "y": y + place // 4 * step}
            self.shape("rect", fill=int(shade) / 10, stroke=0.5, **bin_at, width=step, height=step)


def whole(elements: list[str], height: int, title: str) -> str:
    """Return an SVG file of some elements, which may stand inside a page too; its title is read out."""
    size = f'width="416" viewBox="0 0 {WIDTH} {height}"'  # 26rem: no wider on a large screen
    head = f'<svg xmlns="http://www.w3.org/2000/svg" class="drawing" role="img" {size}>'
    return "\n".join([head, f"<title>{title}</title>", f"<style>{STYLE}</style>", *elements, "</svg>\n"])
