"""Files that a program serves: made by the first image, and left alone by a rehearsal and by the next."""

from pathlib import Path


def shared(name: str, content: str) -> Path:
    """A folder with this file in it."""
    folder = Path("shared").resolve()
    folder.mkdir(exist_ok=True)
    if not (folder / name).exists():
        (folder / name).write_text(content)
    return folder
