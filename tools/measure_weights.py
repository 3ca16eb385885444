"""Measure weights on texts, beside two compressors that see the same bytes: the table of a model card.

    python tools/measure_weights.py weights/nyx-4m FILE...                     # files, `.xz` unpacked
    python tools/measure_weights.py weights/nyx-4m tinyshakespeare builtin     # held-out parts of named corpora

Bits per byte as everywhere (nyx.training.evaluate). `xz -9` and `zstd -19` must be installed; they see nothing before the text.
"""

import argparse
import lzma
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.pop("NYX_TYPECHECK", None)  # as in production

from nyx import NYX
from nyx.data import DOWNLOADS, ByteTokenizer, load_corpus
from nyx.training import evaluate

COMPRESSORS = ("xz -9 -T1 --stdout", "zstd -19 -q --stdout")


def text_of(name: str) -> bytes:
    """The bytes of a file, or of what a named corpus holds out."""
    if name in ("builtin", *DOWNLOADS):
        return load_corpus(None if name == "builtin" else name).valid.tobytes()
    path = Path(name)
    return lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()


def compressed_bits(command: str, text: bytes) -> float:
    """Bits per byte of what a compressor makes of it."""
    packed = subprocess.run(command.split(), input=text, stdout=subprocess.PIPE, check=True).stdout
    return 8 * len(packed) / len(text)


def main() -> None:
    """Print a row for each text."""
    parser = argparse.ArgumentParser(description="Bits per byte of weights, xz -9 and zstd -19.")
    parser.add_argument("weights", help="a folder with model.safetensors")
    parser.add_argument("texts", nargs="+", help=f"files, or builtin, {', '.join(DOWNLOADS)}")
    args = parser.parse_args()
    model = NYX.from_pretrained(args.weights)
    tokenizer = ByteTokenizer()
    print(f"| text | bytes | {Path(args.weights).name} | xz -9 | zstd -19 | seconds |\n|---|---|---|---|---|---|")
    for name in args.texts:
        text, begun = text_of(name), time.perf_counter()
        bits = evaluate(model, tokenizer.encode(text), tokenizer)
        seconds = time.perf_counter() - begun
        others = " | ".join(f"{compressed_bits(command, text):.3f}" for command in COMPRESSORS)
        print(f"| {Path(name).name} | {len(text):,} | {bits:.3f} | {others} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
