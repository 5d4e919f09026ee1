"""Files written in other words: changes after which a file still says what it said, for `test_mutations.py`.

Each takes the bytes, the form's reader and writer (`mutations.FORMS`) and Hypothesis's draw; it returns the new bytes.
"""

import csv
import io
import json
import re
import struct
import zlib
from collections.abc import Callable

import torch
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

BLANKS = st.text(" \t\n\r", min_size=1, max_size=9)
ENDS = st.text("\r\n", min_size=1, max_size=9).map(str.encode)
SPACES = st.integers(1, 9).map(" ".__mul__)


def plain(data: bytes) -> object:
    """Return what JSON says, without a seal, as older versions wrote it: a seal is of the bytes."""
    tree = json.loads(data)
    if isinstance(tree, dict):
        tree.pop("seal", None)
    return tree


def escaped(text: str, draw: Callable) -> str:
    """Return JSON or TOML with some letters of its strings by their numbers."""
    letters = draw(st.text("abcdefghilmnoprstuvw_", min_size=1, max_size=9))
    strings, parts = re.compile(r'"(?:[^"\\]|\\.)*"'), re.compile(r"\\u....|\\.|[^\\]")
    spelt = {letter: f"\\u{ord(letter):04x}" for letter in letters}
    return strings.sub(lambda found: parts.sub(lambda part: spelt.get(part[0], part[0]), found[0]), text)


def indented(data: bytes, _: tuple, draw: Callable) -> bytes:
    separators = draw(SPACES) + ",", ":" + draw(SPACES)
    return json.dumps(plain(data), indent=draw(st.integers(0, 9)), separators=separators).encode()


JSON = {
    "indented": indented,
    "in other letters": lambda data, _, draw: escaped(json.dumps(plain(data)), draw).encode(),
    "blanks around": lambda data, _, draw: (draw(BLANKS) + json.dumps(plain(data)) + draw(BLANKS)).encode(),
    "line ends": lambda data, form, draw: indented(data, form, draw).replace(b"\n", draw(ENDS)),
}


def each_line(change: Callable[[str], str]) -> Callable:
    def changed(data: bytes, _: tuple, draw: Callable) -> bytes:
        lines = [line for line in data.decode().split("\n") if line.strip()]
        chosen = draw(st.integers(0, len(lines) - 1))
        return "\n".join(draw(change(line)) if n >= chosen else line for n, line in enumerate(lines)).encode()

    return changed


def zeros(line: str) -> st.SearchStrategy:
    return st.integers(1, 4).map(lambda n: re.sub(r"(^|[ ,])(\d+)(?=,|$)", rf"\g<1>{'0' * n}\g<2>", line))


LINES = {
    "blanks around": each_line(lambda line: st.tuples(SPACES, SPACES).map(line.join)),
    "blank lines": each_line(lambda line: BLANKS.map(lambda blank: f"{line}\n{blank}")),
    "line ends": each_line(lambda line: st.integers(1, 3).map(lambda n: line + "\r" * n)),
    "marked as UTF-8": lambda data, form, draw: b"\xef\xbb\xbf" + LINES["blanks around"](data, form, draw),
    "leading zeros": each_line(zeros),
}


def quoted(data: bytes, _: tuple, draw: Callable) -> bytes:
    rows, text = list(csv.reader(io.StringIO(data.decode()))), io.StringIO()
    first = draw(st.integers(0, len(rows) - 1))
    csv.writer(text, lineterminator="\n").writerows(rows[:first])
    csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(rows[first:])
    return text.getvalue().encode()


def toml(change: Callable) -> Callable:
    def changed(data: bytes, form: tuple, draw: Callable) -> bytes:
        read, write = form
        return "\n".join(change(line, draw) for line in write(read(data)).decode().split("\n")).encode()

    return changed


TOML = {
    "comments": toml(lambda line, draw: f"# {draw(SPACES)}x = 1\n{line}{draw(SPACES)}# [y]"),
    "blanks around": toml(lambda line, draw: draw(SPACES) + line.replace(" = ", f"{draw(SPACES)}=\t", 1)),
    "line ends": toml(lambda line, draw: f"{line}\r" + "\n\r" * draw(st.integers(0, 5))),
    "in other letters": lambda data, form, draw: escaped(form[1](form[0](data)).decode(), draw).encode(),
}


def tensors(change: Callable) -> Callable:
    def changed(data: bytes, form: tuple, draw: Callable) -> bytes:
        read, write = form
        tree = read(data)
        tree["facts"].pop("seal", None)
        return change(tree, write, draw)

    return changed


def padded(tree: dict, write: Callable, draw: Callable) -> bytes:
    data = write(tree)
    length = int.from_bytes(data[:8], "little")
    blanks = b" " * draw(st.integers(1, 99))
    return (length + len(blanks)).to_bytes(8, "little") + data[8 : 8 + length] + blanks + data[8 + length :]


def reworded(change: Callable[[object, Callable], str]) -> Callable:
    def changed(tree: dict, write: Callable, draw: Callable) -> bytes:
        facts = {n: fact if isinstance(fact, str) else change(fact, draw) for n, fact in tree["facts"].items()}
        return write({**tree, "facts": facts})

    return tensors(changed)


def shuffled(tree: dict, write: Callable, draw: Callable) -> bytes:
    return write({part: dict(draw(st.permutations(list(table.items())))) for part, table in tree.items()})


TENSORS = {
    "a longer header": tensors(padded),
    "indented": reworded(lambda fact, draw: json.dumps(fact, indent=draw(st.integers(0, 9)))),
    "in other letters": reworded(lambda fact, draw: escaped(json.dumps(fact), draw)),
    "another order": tensors(shuffled),
    "another fact": tensors(
        lambda tree, write, draw: write({**tree, "facts": tree["facts"] | {f"x{draw(SPACES)}": draw(SPACES)}})
    ),
}


def published(change: Callable, **how: object) -> Callable:
    def changed(data: bytes, form: tuple, draw: Callable) -> bytes:
        state = form[0](data)["net"]
        torch.save(change(state, draw), buffer := io.BytesIO(), **how)
        return buffer.getvalue()

    return changed


PICKLES = {
    "bare": published(lambda state, draw: dict(draw(st.permutations(list(state.items()))))),
    "under another name": published(lambda state, draw: {"state_dict": state, "epoch": draw(st.integers(0, 99))}),
    "of several GPUs": published(
        lambda state, draw: {"net": {f"module.{name}": part for name, part in state.items()}, "acc": draw(st.floats())}
    ),
    "as before torch 1.6": published(
        lambda state, draw: {"net": state, "epoch": draw(st.integers(0, 99))}, _use_new_zipfile_serialization=False
    ),
    "in doubles": published(
        lambda state, draw: {
            name: part.double() if part.is_floating_point() else part
            for name, part in draw(st.permutations(list(state.items())))
        }
    ),
}

UPRIGHT = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transpositions that undo an orientation's


def saved(picture: Image.Image, kind: str = "PNG", **how: object) -> bytes:
    picture.save(buffer := io.BytesIO(), kind, **how)
    return buffer.getvalue()


def picture(change: Callable) -> Callable:
    return lambda data, _, draw: change(Image.open(io.BytesIO(data)).convert("RGB"), draw)


def turned(image: Image.Image, draw: Callable) -> bytes:
    (exif := Image.Exif())[0x0112] = orientation = draw(st.sampled_from(list(UPRIGHT)))
    return saved(image.transpose(Image.Transpose(UPRIGHT[orientation])), exif=exif)


def frames(image: Image.Image, draw: Callable) -> bytes:
    second = Image.new("RGB", image.size, (draw(st.integers(0, 255)), 0, 0))
    return saved(image, draw(st.sampled_from(["PNG", "TIFF"])), save_all=True, append_images=[second])


def another_format(image: Image.Image, draw: Callable) -> bytes:
    kind, how = draw(
        st.sampled_from([("BMP", {}), ("TIFF", {}), ("WEBP", {"lossless": True}), ("PPM", {}), ("TGA", {})])
    )
    return saved(image, kind, **how)


def alpha(image: Image.Image, draw: Callable) -> bytes:
    image.putalpha(draw(st.integers(0, 255)))
    return saved(image)


def texts(image: Image.Image, draw: Callable) -> bytes:
    (info := PngImagePlugin.PngInfo()).add_text("x", draw(st.text(max_size=9)), zip=draw(st.booleans()))
    return saved(image, pnginfo=info)


def sixteen_bits(image: Image.Image, draw: Callable) -> bytes:
    grey = image.convert("I").point(lambda level: level * 257)
    return saved(grey.convert(mode := draw(st.sampled_from(["I;16", "F"]))), "TIFF" if mode == "F" else "PNG")


def huge(data: bytes, _: tuple, draw: Callable) -> bytes:
    """Return the file with a header that says it is larger than any memory."""
    header = b"IHDR" + struct.pack(">II", *(draw(st.integers(30_000, 2**31 - 1)) for _ in range(2))) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


def one_pixel(image: Image.Image, draw: Callable) -> bytes:
    return saved(image.resize((1, draw(st.integers(1, 2)))))


IMAGES = {
    "turned, says its EXIF": picture(turned),
    "second frame": picture(frames),
    "another format": picture(another_format),
    "alpha": picture(alpha),
    "texts": picture(texts),
    "bytes after its end": lambda data, _, draw: data + draw(st.binary(min_size=1, max_size=99)),
    "packed otherwise": picture(lambda image, draw: saved(image, compress_level=draw(st.integers(0, 9)))),
    "resolution": picture(lambda image, draw: saved(image, dpi=(draw(st.integers(1, 999)),) * 2)),
}
# Pictures of something else, and what is none: either is seen.
OTHER_IMAGES = {
    "palette": picture(lambda image, draw: saved(image.quantize(draw(st.integers(2, 64))))),
    "grey": picture(lambda image, draw: saved(image.convert(draw(st.sampled_from(["L", "1", "LA"]))))),
    "JPEG": picture(lambda image, draw: saved(image, "JPEG", quality=draw(st.integers(5, 95)))),
    "negative": picture(
        lambda image, draw: saved(
            image.point([255 - level for level in range(256)] * 3), dpi=(draw(st.integers(1, 99)),) * 2
        )
    ),
}
WRONG_IMAGES = {"16 bits": picture(sixteen_bits), "one pixel": picture(one_pixel), "huge header": huge}

REWRITTEN = {
    "json": JSON,
    "card": JSON,
    "toml": TOML,
    "lines": LINES,
    "tensors": TENSORS,
    "pickle": PICKLES,
    "csv": {change: LINES[change] for change in ("blank lines", "line ends")} | {"quoted": quoted},
    "mat": {
        "compressed": lambda data, form, _: form[1](form[0](data), do_compression=True),
        "header": lambda data, _, draw: data[:20] + draw(st.binary(min_size=80, max_size=80)) + data[100:],  # free text
    },
    # Of all its bytes, or of what is read of them:
    **{form: {} for form in ("sealed", "hashed", "hashed tensors", "raw")},
    "bytes": {**IMAGES, **OTHER_IMAGES, **WRONG_IMAGES},
}
