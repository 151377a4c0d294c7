"""A small folder in the layout of Market-1501-v15.09.15, of real JPEG files in which persons can be told apart.

A person is the colours of head, torso and legs; a camera tints and darkens, so much that raw colours
mislead; every image is shifted and noisy.  Distractors are noise without a person, junk is half a person.
"""

from pathlib import Path

import numpy as np
from PIL import Image

TRAIN = (2, 7, 10, 11, 12, 20, 22, 23, 27, 28, 30, 32, 35, 37, 42, 43)  # as published: with gaps
TEST = (1, 3, 4, 5, 6, 8)
CAMERAS = (1, 2, 3)
COPIES = 2  # boxes a person and camera in training and gallery
DISTRACTORS, JUNK = 9, 5
COUNTS = {  # images without junk, and persons
    "train": (len(TRAIN) * len(CAMERAS) * COPIES, len(TRAIN)),
    "query": (len(TEST) * len(CAMERAS), len(TEST)),
    "gallery": (len(TEST) * len(CAMERAS) * COPIES + DISTRACTORS, len(TEST)),
}


def write_market(folder: Path, size: tuple[int, int] = (32, 16), seed: int = 1) -> Path:
    """Write the folder, images H x W in an order that is not that of their names, and return it."""
    generator = np.random.default_rng(seed)
    colours = {person: generator.integers(30, 226, (3, 3)) for person in (*TRAIN, *TEST)}
    tints = {camera: generator.uniform(0.4, 1.0, 3) for camera in CAMERAS}
    content = []  # (folder, name, image)
    for name, people, copies in (
        ("bounding_box_train", TRAIN, COPIES),
        ("query", TEST, 1),
        ("bounding_box_test", TEST, COPIES),
    ):
        for person in people:
            for camera in CAMERAS:
                for i in range(copies):
                    box = f"{person:04d}_c{camera}s1_{1000 * person + i:06d}_{i:02d}.jpg"
                    content.append((name, box, _image(colours[person], tints[camera], size, generator)))
    for i in range(DISTRACTORS):
        camera = CAMERAS[i % len(CAMERAS)]
        noise = generator.integers(0, 256, (*size, 3)).astype(np.uint8)
        content.append(("bounding_box_test", f"0000_c{camera}s1_{i:06d}_01.jpg", noise))
    for i in range(JUNK):
        half = _image(colours[TEST[i % len(TEST)]], tints[1], size, generator)
        half[: size[0] // 2] = 0
        content.append(("bounding_box_test", f"-1_c1s1_{i:06d}_00.jpg", half))
    for i in generator.permutation(len(content)):
        name, box, image = content[i]
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / name / box, quality=95, subsampling=0)
    return folder


def _image(colours: np.ndarray, tint: np.ndarray, size: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
    """uint8 H x W x 3: three bands of colour between margins, shifted by up to a sixteenth of the height."""
    height, width = size
    scene = np.full((height, width, 3), 128.0)
    shift = generator.integers(0, height // 16 + 1)
    edges = np.array([0, 1, 4, 7]) * height // 8 + shift
    for colour, top, bottom in zip(colours, edges, edges[1:], strict=False):
        scene[top:bottom, width // 8 : width - width // 8] = colour
    return (scene * tint + generator.normal(0, 12, scene.shape)).clip(0, 255).astype(np.uint8)
