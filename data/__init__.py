"""Data sets, transforms and loaders. This package imports neither models nor engine."""

from .albumentations_pipeline import Pipeline
from .annotations import CocoAnnotations, ImageList, load_annotations, load_categories, load_image_list
from .classes import ClassChanges
from .coco import CocoDetection
from .coco_file import DatasetError, Problem, declared_size
from .image_files import ImageError
from .images import ReadOptions, read_image
from .inspection import Inspection, compare_splits, inspect_dataset
from .loaders import UNREADABLE_POLICIES, eval_loader, train_loader
from .meaning import unique_names
from .mixing import Mixing
from .rare_classes import ClassCounts, balanced_weights, class_repeat_factors, count_classes, image_repeat_factors
from .segmentation import MASK_THRESHOLD, decode_masks, encode_masks, segmentation_problem, to_rle
from .steps import Batch, MicroBatch, StepSampler
from .transforms import TrainTransform, eval_transform
from .workers import WorkerError, read_batches
