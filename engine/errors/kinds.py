"""The meaning of each kind of errors, and the usual remedies."""

from typing import NamedTuple


class KindText(NamedTuple):
    """Texts of a kind of errors.

    Attributes:
        short: name in the paper of TIDE.
        meaning: what the errors are.
        help: what usually helps.
    """

    short: str
    meaning: str
    help: str


KIND_TEXTS = {
    "class": KindText(
        "Cls",
        "right place, wrong class",
        "more images of the confused classes; check their labels; merge classes that look alike",
    ),
    "localization": KindText(
        "Loc",
        "right class, IoU 0.1 to 0.5",
        "larger images (data.min_size); labels with tight boxes; a detector that refines boxes (cascade_rcnn)",
    ),
    "both": KindText(
        "Both",
        "wrong class, IoU 0.1 to 0.5",
        "longer training, stronger augmentation; then as for class and localization",
    ),
    "duplicate": KindText("Dupe", "an object that is found again", "a lower nms_threshold of the detector"),
    "background": KindText(
        "Bkg",
        "no object there",
        "images without objects in the training data; check for missing labels; a higher score threshold in use",
    ),
    "missed": KindText(
        "Miss",
        "an object that nothing finds",
        "larger images for small objects; more examples of rare classes; longer training; check the labels",
    ),
}
