"""Data sets, transforms and loaders. Imports neither models nor engine."""

from .annotations import CocoAnnotations, DatasetError, load_annotations
from .coco import CocoDetection
from .images import ImageError, read_image
from .inspection import Inspection, compare_splits, inspect_dataset
from .loaders import AspectRatioBatchSampler, eval_loader, train_loader
from .transforms import eval_transform, train_transform

__all__ = [
    "AspectRatioBatchSampler",
    "CocoAnnotations",
    "CocoDetection",
    "DatasetError",
    "ImageError",
    "Inspection",
    "compare_splits",
    "eval_loader",
    "eval_transform",
    "inspect_dataset",
    "load_annotations",
    "read_image",
    "train_loader",
    "train_transform",
]
