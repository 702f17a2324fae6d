"""What the usual codecs need for the test data of the records: bits per dimension, sample and byte.

    python benchmarks/codecs.py DATA

writes results/codecs.json. Each codec runs at its strongest lossless setting. PNG and WebP code every image by itself,
header included, as does FLAC every clip; gzip, xz, bzip2 and zstd code the test text as one file.
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import io
import lzma
import tempfile
from pathlib import Path

from timing import Results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    args = parser.parse_args()
    results = Results()
    for name in ("cifar10/cifar10_lossless_first4000.npz", "bsds300/bsds300_color32_tiles.npz"):
        images(results, args.data / "images" / name)
    sounds(results, args.data / "audio" / "fsdd" / "fsdd_8k_5speakers.npz")
    text(results, args.data / "text" / "tinyshakespeare.txt")
    results.save()


def images(results: Results, path: Path) -> None:
    """Bits per dimension of the test images."""
    from PIL import Image

    import pofx

    x = pofx.load(path).test.x
    for codec, options in (("png", {"optimize": True}), ("webp", {"lossless": True, "quality": 100, "method": 6})):
        size = 0
        for image in x:
            file = io.BytesIO()
            Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(file, codec, **options)
            size += len(file.getvalue())
        results.emit(data=path.stem, codec=codec, bits_per_dim=8 * size / x.numel(), images=len(x))


def sounds(results: Results, path: Path) -> None:
    """Bits per sample of the test clips; the share of headers is told apart."""
    import soundfile

    import pofx
    from pofx.data.write import write_audio

    data = pofx.load(path)
    x, space = data.test.x, data.space
    size = samples = headers = 0
    with tempfile.TemporaryDirectory() as place:
        for i in range(len(x)):
            clip = x[i : i + 1][0]
            target = Path(place) / f"{i}.flac"
            write_audio(space, clip, target)
            size += target.stat().st_size
            headers += flac_header(target)
            samples += len(clip)
            assert soundfile.info(str(target)).frames == len(clip)
    results.emit(
        data=path.stem, codec="flac", bits_per_sample=8 * size / samples, clips=len(x), samples=samples,
        bits_per_sample_without_headers=8 * (size - headers) / samples,
    )  # fmt: skip


def flac_header(path: Path) -> int:
    """Bytes before the first frame: the marker and the metadata blocks."""
    content, place, last = path.read_bytes(), 4, False
    while not last:
        last = bool(content[place] & 0x80)
        place += 4 + int.from_bytes(content[place + 1 : place + 4], "big")
    return place


def text(results: Results, path: Path) -> None:
    """Bits per byte of the last tenth, and of the whole file."""
    content = path.read_bytes()
    test = content[round(0.9 * len(content)) :]
    codecs = {
        "gzip -9": lambda b: gzip.compress(b, 9, mtime=0),
        "xz -9e": lambda b: lzma.compress(b, preset=9 | lzma.PRESET_EXTREME),
        "bzip2 -9": lambda b: bz2.compress(b, 9),
        "zstd -19": zstd,
    }
    for name, pack in codecs.items():
        for part, data in (("last tenth", test), ("whole file", content)):
            results.emit(data=path.stem, part=part, codec=name, bits_per_byte=8 * len(pack(data)) / len(data))


def zstd(data: bytes) -> bytes:
    """By pyarrow's zstd at level 19."""
    import pyarrow as pa

    return pa.Codec("zstd", compression_level=19).compress(data, asbytes=True)


if __name__ == "__main__":
    main()
