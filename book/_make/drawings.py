"""The book's drawings, which `vireid-lite book --sync` writes to book/_static/drawings; `_ext/drawings.py` shows them.

Blue is visible, vermilion infrared; green is what training minimises, or a right match; purple is what an attack does.
"""

import math

from _make.svg import Drawing, toward, whole

FOLDER = "book/_static/drawings"

# Equation 1: whose feature a term moves, whose centroid pushes it away and whose pulls it.
TERMS = {
    "Term 1: a visible feature": ("visible", "infrared", "grey"),
    "Term 2: a grey feature": ("grey", "visible", "infrared"),
    "Term 3: an infrared feature": ("infrared", "grey", "visible"),
}
# One bracket: where the centres of person j and one of person k lie, and the margin.
CENTRES = {("j", "v1"): (104, 118), ("j", "v2"): (234, 118), ("j", "i1"): (36, 136), ("j", "i2"): (68, 70)}
CENTRES |= {("k", "v2"): (282, 82)}
ALPHA = 30
# Chapter 10's four forms of knowing nothing: what the queries A, A, B, B, C, C find, nearest first.
ORDERS = {
    "each its own": ("BACBCA", "ACBABC", "CABACB", "BCAACB", "ABCACB", "BACABC"),
    "one for all": ("BACCAB", "BACCAB", "BACCAB", "BACCAB", "BACCAB", "BACCAB"),
    "one a person": ("CABBAC", "CABBAC", "BCACAB", "BCACAB", "ABCABC", "ABCABC"),
    "a person, blocks": ("BBAACC", "BBAACC", "BBCCAA", "BBCCAA", "AACCBB", "AACCBB"),
}


def two_stream(d: Drawing) -> None:
    """Draw where each loss sits, and where delta enters."""
    for x, kind, inner in ((85, "visible", 148), (255, "infrared", 192)):
        d.box(x - 70, 6, 140, 30, f"{kind} image", kind=kind)
        d.sign(x, 68, "+", "attack")
        d.arrow((inner, 68), toward((x, 68), (inner, 68), 10), kind="attack")
        d.box(x - 70, 106, 140, 44, f"{kind} stem", "block 0", kind=kind)
        d.down(x, 36, 58, 78, 106, 150, 180)
    d.box(148, 53, 44, 30, "$δ$", kind="attack")
    d.text(170, 95, "attack")
    d.box(60, 180, 220, 140, fill=0.04)
    d.text(170, 194, "trunk, shared by both")
    for row, name in enumerate(("block 1", "block 2, non-local", "block 3, non-local", "block 4")):
        d.box(80, 206 + 28 * row, 180, 23, name)
    for row, name in enumerate(("GeM pooling", "pooled feature", "BNNeck", "embedding", "classifier")):
        d.down(105, 320 + 52 * row, 342 + 52 * row)
        d.box(35, 342 + 52 * row, 140, 30, name, fill=0 if row % 2 else 0.08)
    for y, name, kind in ((409, "triplet loss", "green"), (513, "ranking", "ink"), (565, "identity loss", "green")):
        d.arrow((175, y), (215, y), kind=kind)
        d.box(215, y - 15, 115, 30, name, kind=kind)


def universal(d: Drawing) -> None:
    """Draw how one delta is learned on training images and added to every query."""
    learned = ["clip to [0, 1]", "victim, frozen", "loss", "gradient by $δ$, summed: $Δ$"]
    learned += ["step: $δ − α\u2009$sign$\u2009Δ$", "projection: clip to $± ε$"]
    added = ["clip to [0, 1], 8 bits", "victim, the same", "ranking of a clean gallery"]
    for y, title, first, rest in (
        (26, "Learned once", "training images", learned),
        (382, "Added to every query", "query", added),
    ):
        d.text(15, y - 16, title, "start", "bold")
        d.box(15, y, 210, 28, first)
        d.mark("visible", (34, y + 14))
        d.mark("infrared", (206, y + 14))
        d.sign(120, y + 50, "+", "attack")
        d.box(268, y + 35, 44, 30, "$δ$", kind="attack")
        d.arrow((268, y + 50), (130, y + 50), kind="attack")
        d.down(120, y + 28, y + 40, y + 60, y + 72)
        for row, name in enumerate(rest):
            d.box(15, y + 72 + 42 * row, 210, 28, name, kind="attack" if rest is learned and row > 1 else "ink")
            if row:
                d.down(120, y + 58 + 42 * row, y + 72 + 42 * row)
    d.arrow((225, 322), (290, 322), (290, 91), kind="attack")
    d.text(283, 200, "next", "end")
    d.text(283, 217, "batch", "end")


def triplet(d: Drawing) -> None:
    """Draw equation 1, a panel for each term."""
    clouds = {"visible": (88, 114), "grey": (170, 58), "infrared": (252, 114)}
    labels = {"visible": (88, 153, "middle"), "grey": (116, 42, "end"), "infrared": (240, 153, "middle")}
    for row, (title, names) in enumerate(TERMS.items()):
        d.append(f'<g transform="translate(0 {184 * row})">')
        d.text(8, 12, title, "start", "bold")
        for name, symbol in zip(names, ("f", "C^p", "C^n"), strict=True):
            (x, y), (left, low, anchor) = clouds[name], labels[name]
            d.shape("ellipse", name, 0.1, 1, cx=x, cy=y, rx=48, ry=27)
            for right, under in ((-32, 6), (-18, -14), (-14, 14), (16, -16), (18, 13), (33, 4)):
                d.mark(name, (x + right, y + under), 3.5, 0.4)
            d.text(left, low, f"{name}: ${symbol}_{name[0]}$", anchor)
        own, push, pull = (clouds[name] for name in names)
        d.arrow(toward(push, own, 8), toward(own, push, -66), kind="attack", dash=True)
        d.arrow(own, toward(pull, own, 8), kind="attack")
        d.mark(names[0], own, 6)
        for centroid in (push, pull):
            d.text(*centroid, "×", look="bold")
        d.append("</g>")
    for x, said, dash in ((12, "pulled to $C^n$", False), (172, "pushed from $C^p$", True)):
        d.arrow((x, 548), (x + 40, 548), kind="attack", dash=dash)
        d.text(x + 48, 548, said, "start")


def fsam(d: Drawing) -> None:
    """Draw attention on the phase of a feature map."""
    d.grid(93, 21, 54)
    d.down(120, 75, 92)
    d.box(15, 92, 310, 28, "$F$: transform of each channel")
    for x in (20, 235):
        d.down(x + 25, 120, 136)
        d.grid(x, 147, 50)
    d.down(260, 197, 214)
    d.box(130, 214, 170, 28, "max, mean over $c$")
    for x, kind in ((130, "visible"), (218, "infrared")):
        d.down(x + 41, 242, 256)
        d.box(x, 256, 82, 44, "$σ(f^{7×7})$", kind, kind=kind)
        d.arrow((x + 41, 300), (x + 41, 309), (215, 309), heads=())
    d.grid(191, 322, 48, 1, "8642575336724851")
    d.sign(215, 400, "×", "ink")
    d.down(215, 309, 322, 370, 390, 410, 428)
    d.arrow((295, 172), (322, 172), (322, 400), (225, 400))
    d.down(45, 197, 428)
    d.box(15, 428, 310, 30, "$A e^{j M(P) P}$")
    d.box(15, 474, 310, 28, "$F^{−1}$, real part")
    d.down(170, 458, 474, 502, 520)
    d.grid(143, 530, 54)
    labels = {(164, "start"): (40, "feature map $x$", "of $C$ channels"), (90, "start"): (164, "amplitude", "$A$")}
    labels |= {(226, "end"): (164, "phase", "$P$"), (214, "start"): (549, "a map again,", "as large as $x$")}
    labels |= {(182, "end"): (328, "weights $M(P)$:", "one a bin, alike", "in all channels")}
    for (x, anchor), (y, *lines) in labels.items():
        for row, line in enumerate(lines):
            d.text(x, y + 18 * row, line, anchor)


def quadruple(d: Drawing) -> None:
    """Draw one bracket of the visible direction; its bars are as long as its distances, times two."""
    (v1, v2, _, i2, other), middle = CENTRES.values(), (169, 118)
    d.text(8, 12, "One bracket of the visible direction", "start", "bold")
    for end in (v1, v2):
        d.arrow(toward(end, middle, 9), toward(middle, end, 2), kind="attack")
    for one, two in ((v1, i2), (v2, other)):
        d.arrow(toward(one, two, 9), toward(two, one, 9), kind="attack", dash=True, heads=(0, -1))
    for (who, name), at in CENTRES.items():
        d.mark("visible" if name[0] == "v" else "infrared", at, 6, fill=int(name[1]) - 1)
        d.text(at[0], at[1] + (22 if at in (v1, v2) else -22), f"$c^{who}_{{{name}}}$")
    for x, y, name in ((169, 98, "$a_j$"), (102, 84, "$b_j$"), (278, 110, "$c_{jk}$")):
        d.text(x, y, name)
    for y, fill, said in ((174, 0, "made short"), (198, 1, "made long")):
        d.mark("visible", (18, y), fill=fill)
        d.mark("infrared", (33, y), fill=fill)
        d.text(45, y, f"stage {fill + 1}", "start")
        d.text(186, y, said, "start")
    d.arrow((132, 174), (152, 174), kind="attack")
    d.arrow((176, 174), (156, 174), kind="attack")
    d.arrow((132, 198), (176, 198), kind="attack", dash=True, heads=(0, -1))
    d.text(8, 242, "$a_j + α$ reaches beyond $b_j + c_{jk}$", "start")
    a, b, c, alpha = (2 * length for length in (math.dist(v2, v1), math.dist(i2, v1), math.dist(v2, other), ALPHA))
    d.box(8, 258, a, 28, "$a_j$", kind="attack")
    d.box(8 + a, 258, alpha, 28, "$α$", fill=0)
    d.box(8, 290, b, 28, "$b_j$", kind="attack")
    d.box(8 + b, 290, c, 28, "$c_{jk}$", kind="attack")
    d.box(8 + b + c, 290, a + alpha - b - c, 28, "loss", kind="attack", fill=0.45)


def chance(d: Drawing) -> None:
    """Draw four rankings that know nothing."""
    for panel, (title, orders) in enumerate(ORDERS.items()):
        left, top = 8 + 172 * (panel % 2), 172 * (panel // 2)
        d.text(left, top + 12, title, "start", "bold")
        for row, (query, order) in enumerate(zip("AABBCC", orders, strict=True)):
            y = top + 26 + 22 * row
            d.text(left + 8, y + 10, query)
            for rank, found in enumerate(order):
                look = {"kind": "green", "fill": 0.45} if found == query else {"kind": "grey", "fill": 0}
                d.box(left + 24 + 22 * rank, y, 20, 20, found, **look)
    d.text(170, 352, "query, then the gallery, nearest first")


# By name: what draws it, its height, its title; the chapter that shows it says the rest to who cannot see it.
DRAWINGS = {
    "two_stream": (two_stream, 588, "The two-stream network"),
    "universal": (universal, 572, "A universal attack"),
    "triplet": (triplet, 562, "The three terms of the triplet"),
    "fsam": (fsam, 590, "FSAM in a feature map"),
    "quadruple": (quadruple, 326, "The quadruple loss"),
    "chance": (chance, 364, "Rankings that know nothing"),
}


def svg(name: str) -> str:
    """Return a drawing as an SVG file."""
    draw, height, title = DRAWINGS[name]
    draw(elements := Drawing())
    return whole(elements, height, title)
