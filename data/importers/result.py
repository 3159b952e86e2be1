"""The folder that an import writes: a COCO file per split, and a config that uses them."""

from pathlib import Path
from typing import Any

import yaml

from ..coco_file import DatasetError
from ..files import write_json, write_text
from ..json_file import JsonError, read_json
from .folder import SOFTWARE, SPLITS, absolute
from .tile_folder import earlier_tiles, is_tile_folder, remove_tiles

_MARK = f"# Written by {SOFTWARE}"


def check_result_folder(folder: Path) -> None:
    """Raise `DatasetError` unless a folder does not exist, is empty, or has files of an earlier import alone."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise DatasetError(f"OUT must be a folder, got the file {folder}")
    ours = {path for path in _files_of(folder).values() if _is_ours(path)} | earlier_tiles(folder)
    ours.add(folder / "annotations")
    other = [path for path in sorted(folder.rglob("*")) if path not in ours and not is_tile_folder(path, folder)]
    if other:
        raise DatasetError(f"OUT {folder} has files that are not an earlier result of this tool, such as {other[0]}")


def write_result(
    folder: Path,
    root: Path,
    datasets: dict[str, dict[str, Any]],
    origin: str,
    base: str = "custom.yaml",
    *,
    tile: dict[str, Any] | None = None,
) -> Path | None:
    """Write the COCO files and a config; return the config, or None without a split to train on and one to evaluate.

    Args:
        folder: Folder to write.
        root: Folder of the images.
        datasets: COCO data set of each split.
        origin: Source and format, for people who read the files.
        base: Config that the written config is based on.
        tile: Section `tile` of the config, if the images are tiles of `keep_tiles`. None removes earlier tiles.
    """
    if tile is None:
        remove_tiles(folder)
    files = _files_of(folder)
    for name, path in files.items():
        if name not in datasets:
            path.unlink(missing_ok=True)  # also the config, which a reader must not find with other annotations
    info = {"description": SOFTWARE, "source": origin}
    for split, raw in datasets.items():
        write_json(files[split], {"info": info, **raw})
    evaluated = next((split for split in ("val", "test") if split in datasets), None)
    if evaluated is None or "train" not in datasets:
        return None
    splits = {"train": files["train"], "val": files[evaluated]}
    data = {name: {"images": str(root), "annotations": str(absolute(path))} for name, path in splits.items()}
    data["download_hint"] = None  # that of the base is for other data
    if tile:
        data["crowd_regions"] = "ignore"  # objects that the tiles cut, also if the base trains on them as background
    config = {"base": base, "data": data} | ({"tile": tile} if tile else {})
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=10_000)
    write_text(files["config"], f"{_MARK} from {origin}\n{text}")
    return files["config"]


def _files_of(folder: Path) -> dict[str, Path]:
    """Return the files of a result by their split, and the config."""
    return {split: folder / "annotations" / f"{split}.json" for split in SPLITS} | {
        # the name of the config is the name of the run
        "config": folder / f"{absolute(folder).name}.yaml"
    }


def _is_ours(path: Path) -> bool:
    try:
        if path.suffix == ".yaml":
            return path.read_bytes().startswith(_MARK.encode())
        value = read_json(path)
    except (JsonError, OSError):
        return False
    info = value.get("info") if isinstance(value, dict) else None
    return isinstance(info, dict) and info.get("description") == SOFTWARE
