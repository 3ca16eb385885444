"""JupyterLab for this course: `jupyter lab --config=.jupyter/jupyter_server_config.py` from the top folder."""

import warnings
from pathlib import Path

from nbdev.clean import clean_jupyter

c = get_config()  # Jupyter provides it
root = Path(__file__).resolve().parent.parent


def clean_on_save(path, model, **kwargs):
    """Keep a saved notebook free of counters and machine metadata, as `nbdev_clean` would."""
    clean_jupyter(path=str(root / path), model=model, **kwargs)


warnings.filterwarnings("ignore", message="Overriding existing pre_save_hook")  # JupyterLab reads this file twice
c.ServerApp.root_dir = str(root)
c.ContentsManager.pre_save_hook = clean_on_save
c.KernelManager.transport_encryption = "auto"
