"""Data sets, transforms and loaders. Imports neither models nor engine."""

from .annotations import CocoAnnotations, load_annotations
from .coco import CocoDetection
from .coco_file import DatasetError, Problem, stated_size
from .images import ImageError, read_image, rgb_image
from .inspection import Inspection, compare_splits, inspect_dataset
from .loaders import UNREADABLE_POLICIES, blank_batch, eval_loader, train_loader
from .segmentation import MASK_THRESHOLD, decode_masks, encode_masks, segmentation_problem, to_rle
from .steps import Batch, MicroBatch, StepSampler
from .transforms import eval_transform, train_transform
from .workers import WorkerError, read_batches

__all__ = [
    "MASK_THRESHOLD",
    "UNREADABLE_POLICIES",
    "Batch",
    "CocoAnnotations",
    "CocoDetection",
    "DatasetError",
    "ImageError",
    "Inspection",
    "MicroBatch",
    "Problem",
    "StepSampler",
    "WorkerError",
    "blank_batch",
    "compare_splits",
    "decode_masks",
    "encode_masks",
    "eval_loader",
    "eval_transform",
    "inspect_dataset",
    "load_annotations",
    "read_batches",
    "read_image",
    "rgb_image",
    "segmentation_problem",
    "stated_size",
    "to_rle",
    "train_loader",
    "train_transform",
]
