"""A small archive in the layout of Market-1501-v15.09.15, of real JPEG files in which persons can be told apart.

A person is the colours of head, torso and legs; a camera tints and darkens, so much that raw colours
mislead; every image is shifted and noisy.  Distractors are noise without a person, junk is half a person.
"""

import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

TRAIN = (2, 7, 10, 11, 12, 20, 22, 23, 27, 28, 30, 32, 35, 37, 42, 43)  # as published: with gaps
TEST = (1, 3, 4, 5, 6, 8)
CAMERAS = (1, 2, 3)
COPIES = 2  # boxes a person and camera in training and gallery
DISTRACTORS, JUNK = 9, 5
TOP, SIZE = "Market-1501-v15.09.15", (32, 16)
QUERIES = len(TEST) * len(CAMERAS)
GALLERY = QUERIES * COPIES + DISTRACTORS  # without junk
TRAINING = len(TRAIN) * len(CAMERAS) * COPIES


def market(size: tuple[int, int] = SIZE, seed: int = 1) -> dict[str, bytes]:
    """The files by name, images H x W, in an order that is not that of their names."""
    generator = np.random.default_rng(seed)
    colours = {person: generator.integers(30, 226, (3, 3)) for person in (*TRAIN, *TEST)}
    tints = {camera: generator.uniform(0.4, 1.0, 3) for camera in CAMERAS}
    content = []  # (name, image)
    for folder, people, copies in (
        ("bounding_box_train", TRAIN, COPIES),
        ("query", TEST, 1),
        ("bounding_box_test", TEST, COPIES),
    ):
        for person in people:
            for camera in CAMERAS:
                for i in range(copies):
                    box = f"{person:04d}_c{camera}s1_{1000 * person + i:06d}_{i:02d}.jpg"
                    content.append((f"{folder}/{box}", _image(colours[person], tints[camera], size, generator)))
    for i in range(DISTRACTORS):
        camera = CAMERAS[i % len(CAMERAS)]
        noise = generator.integers(0, 256, (*size, 3)).astype(np.uint8)
        content.append((f"bounding_box_test/0000_c{camera}s1_{i:06d}_01.jpg", noise))
    for i in range(JUNK):
        half = _image(colours[TEST[i % len(TEST)]], tints[1], size, generator)
        half[: size[0] // 2] = 0
        content.append((f"bounding_box_test/-1_c1s1_{i:06d}_00.jpg", half))
    files = {}
    for i in generator.permutation(len(content)):
        name, image = content[i]
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=95, subsampling=0)
        files[f"{TOP}/{name}"] = buffer.getvalue()
    return files | {f"{TOP}/readme.txt": b"made", f"{TOP}/query/Thumbs.db": b"no image"}


def write_archive(folder: Path, files: dict[str, bytes], entry: dict) -> dict:
    """Write the zip into a mirror folder; returns the catalogue's entry, for it in place of the published one."""
    path = folder / f"{TOP}.zip"
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return entry | {
        "files": [{**entry["files"][0], "md5": hashlib.md5(path.read_bytes()).hexdigest()}],
        "image": {"size": list(SIZE), "channels": 3},
        "images": {"train": TRAINING, "query": QUERIES, "gallery": GALLERY + JUNK},
        "split": {"train": TRAINING - len(TRAIN), "validation": len(TRAIN), "seed": 0},
        "re_ranking": {"k1": 8, "k2": 3, "weight": 0.3},
    }


def _image(colours: np.ndarray, tint: np.ndarray, size: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
    """uint8 H x W x 3: three bands of colour between margins, shifted by up to a sixteenth of the height."""
    height, width = size
    scene = np.full((height, width, 3), 128.0)
    shift = generator.integers(0, height // 16 + 1)
    edges = np.array([0, 1, 4, 7]) * height // 8 + shift
    for colour, top, bottom in zip(colours, edges, edges[1:], strict=False):
        scene[top:bottom, width // 8 : width - width // 8] = colour
    return (scene * tint + generator.normal(0, 12, scene.shape)).clip(0, 255).astype(np.uint8)
