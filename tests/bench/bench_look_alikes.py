"""What the second stage of the contamination check (toolkit/evaluate/look_alikes.py) finds, and at what cost.
By hand:

    python tests/bench/bench_look_alikes.py IMAGES [--count 500]

The images of a folder stand for the evaluation's. Each is attacked in every way of ATTACKS and looked for:
the share that is found again by its own name is the recall, pairs with another name are false alarms. So are
pairs of two of the images themselves; they are printed by name, since some may show the same thing.
"""

import argparse
import io
import sys
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageOps

sys.path.insert(0, str(Path(__file__).parents[2]))
from toolkit.evaluate.contamination import alike, fingerprint
from toolkit.evaluate.look_alikes import Index, features, grey_of


def cut(image: Image.Image, share: float) -> Image.Image:
    """Without `share` of each side at every edge."""
    width, height = image.size
    across, down = round(share * width), round(share * height)
    return image.crop((across, down, width - across, height - down))


ATTACKS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG 40": lambda image: image,
    "half the size": lambda image: image.resize([max(1, side // 2) for side in image.size]),
    "crop 5 %": lambda image: cut(image, 0.05),
    "crop 15 %": lambda image: cut(image, 0.15),
    "mirror": ImageOps.mirror,
    "rotation 2°": lambda image: image.rotate(2, Image.Resampling.BICUBIC),
    "border 5 px": lambda image: ImageOps.expand(image, 5),
    "border 20 px": lambda image: ImageOps.expand(image, 20, "white"),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "mirror, crop 5 %, rotation 2°": lambda image: cut(
        ImageOps.mirror(image).rotate(2, Image.Resampling.BICUBIC), 0.05
    ),
}


def encoded(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=40)
    return content.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("--count", type=int, default=500)
    arguments = parser.parse_args()
    paths = sorted(path for path in arguments.images.rglob("*") if path.suffix in (".jpg", ".jpeg", ".png"))
    contents = {path.name: path.read_bytes() for path in paths[: arguments.count]}
    begin = time.process_time()
    greys = {name: grey_of(content) for name, content in contents.items()}
    index = Index({name: grey for name, grey in greys.items() if grey is not None})
    cost = 1000 * (time.process_time() - begin) / len(greys)
    print(f"{len(index.names) // 2} images indexed: {cost:.1f} CPU ms each")
    begin = time.process_time()
    among = [
        pair for name, grey in greys.items() if grey is not None for pair in index.like(name, features(grey))
    ]
    own = sum(pair.training == pair.evaluation for pair in among)
    cost = 1000 * (time.process_time() - begin) / len(greys)
    print(
        f"the images themselves: {100 * own / len(greys):.1f} % found, {cost:.1f} CPU ms each; pairs of two:"
    )
    for pair in among:
        if pair.training < pair.evaluation:
            print(f"  {pair.training} {pair.evaluation} {pair.points} points, correlation {pair.correlation}")
    prints = {name: fingerprint(content) for name, content in contents.items()}
    pairs_of_two = {(pair.training, pair.evaluation) for pair in among}
    for attack, change in ATTACKS.items():
        first = second = alarms = 0
        for name, content in contents.items():
            with Image.open(io.BytesIO(content)) as image:
                copy = encoded(change(image.convert("RGB")))
            likeness = alike(fingerprint(copy), prints[name]) if prints[name][2] is not None else None
            told = [pair.evaluation for pair in index.like(name, features(grey_of(copy)))]
            first, second = first + (likeness is not None), second + (name in told)
            alarms += len({other for other in told if other != name and (name, other) not in pairs_of_two})
        count = len(contents)
        print(
            f"{attack:30} first stage {100 * first / count:5.1f} %, second {100 * second / count:5.1f} %; "
            f"false alarms {alarms}",
            flush=True,
        )


if __name__ == "__main__":
    main()
