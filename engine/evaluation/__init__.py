"""Detections of a data set, COCO's figures of them, and what became of each."""

from .coco_eval import class_keys, coco_figures, match_results
from .coco_json import coco_dataset, match_files
from .detect import coco_results, detect, evaluate, gather_results
from .figures import COCO_FIGURES, FIGURE_MEANINGS, MASK_PREFIX, describe_figures, number_figures
from .matching import RIGHT, VERDICTS, judge_detections
from .results import check_results, has_masks
from .verdicts import MISSED, VERDICT_COLOURS, draw_detections, draw_verdicts, explain_verdict
