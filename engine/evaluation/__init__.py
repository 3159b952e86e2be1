"""Detections of a data set, their COCO metrics, best score thresholds, and the error type of each detection."""

from .backends import coco_eval_class, describe_backend
from .coco_eval import class_keys, coco_metrics, match_results
from .coco_json import coco_dataset, match_files
from .detect import coco_results, detect, evaluate, gather_results
from .doubts import result_doubts
from .error_costs import ErrorCosts, error_costs
from .error_types import ERROR_TYPE_COLOURS, MISSED, describe_error_type, draw_classified, draw_predictions
from .limits import limit_problems
from .losses import mean_losses
from .matching import MATCH_TYPES, TRUE_POSITIVE, classify_detections
from .metrics import (
    COCO_METRICS,
    MASK_PREFIX,
    MAX_DETECTIONS,
    METRIC_MEANINGS,
    describe_metrics,
    metric_meanings,
    scalar_metrics,
)
from .overlap import overlaps
from .results import check_results, has_masks, image_size
from .score_page import render_scores
from .score_plots import draw_curves, draw_matrix
from .score_report import ScoreReport, score_report
from .score_tables import class_table, describe_confusion
from .thresholds import FEW_OBJECTS
from .tide import BACKGROUND, BACKGROUND_IOU, CLASS, CORRECT, ERROR_KINDS, MATCH_IOU, MISSED_OBJECT, Errors, find_errors
