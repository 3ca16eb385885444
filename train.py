"""Train a NYX: python train.py --help"""

from nyx.cli import train_main

if __name__ == "__main__":
    raise SystemExit(train_main())
