"""Let a trained NYX write: python test.py --sample_prompt "AI is a power!" """

from nyx.cli import test_main

if __name__ == "__main__":
    raise SystemExit(test_main())
