"""``python -m polopt.describe FOLDER`` writes the pages of pieces and methods, and the map."""

import sys
from pathlib import Path

from polopt.describe.pages import pages
from polopt.describe.picture import draw_map

if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text, encoding="utf-8")
    draw_map(folder / "map.png")
