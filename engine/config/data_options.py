"""Options of the data set: files, image sizes, augmentation and loading."""

from typing import Annotated, Literal

from pydantic import Field

from data.classes import ClassChanges
from models import KINDS
from models.options import Affects, Alias, NonNegativeInt, OldName, UsedIf, ValueBefore, Word

from .augment_options import AugmentConfig, FilePath, ImageSide
from .sections import Section

ClassName = Annotated[str, Field(min_length=1, max_length=1000)]
ClassNames = Annotated[list[ClassName], Field(min_length=1, max_length=10_000)]
PixelValue = Annotated[float, Field(ge=-1e9, le=1e9)]
PixelRange = Annotated[list[PixelValue], Field(min_length=2, max_length=2)]
ChannelRanges = Annotated[list[PixelRange], Field(min_length=1, max_length=1024)]
ChannelValues = Annotated[list[Annotated[float, Field(ge=-1000, le=1000)]], Field(min_length=1, max_length=1024)]
ChannelDeviations = Annotated[list[Annotated[float, Field(gt=0, le=1000)]], Field(min_length=1, max_length=1024)]


class SplitConfig(Section):
    """One split of a data set in COCO format."""

    images: Annotated[FilePath, Affects.NOTHING]
    """Folder of the images; a relative path is relative to the working directory."""
    annotations: Annotated[FilePath, Affects.NOTHING]
    """COCO instances JSON file."""


class ClassesConfig(Section):
    """Other classes than those of the annotation files: first merge and rename, then keep."""

    keep: Annotated[ClassNames | None, Affects.RESULT] = None
    """Names of the classes that remain, after `merge` and `rename`; null: all. Objects of other classes count as
    background, in training and in evaluation."""
    merge: Annotated[dict[ClassName, ClassNames], Field(max_length=10_000), Affects.RESULT] = Field({})
    """Classes to join: new name, and a list of names in the file. The class gets the smallest category id of them."""
    rename: Annotated[dict[ClassName, ClassName], Field(max_length=10_000), Affects.RESULT] = Field({})
    """Classes with another name: name in the file, and new name."""

    @property
    def changes(self) -> ClassChanges:
        """The same changes for the data set."""
        return ClassChanges(**self.model_dump())


class DataConfig(Section):
    """Data set, image sizes, augmentation and loading."""

    train: SplitConfig
    """Training split."""
    val: SplitConfig
    """Validation split."""
    classes: ClassesConfig | None = None
    """Other classes than those of the annotation files; null: the classes of the files."""
    download_hint: Annotated[Annotated[str, Field(max_length=10_000)] | None, Affects.NOTHING, OldName("source")] = None
    """How to get the data set; the error about missing files shows it."""
    invalid_annotations: Annotated[Literal["raise", "clip", "drop"], Affects.RESULT, OldName("invalid_boxes")] = "raise"
    """Policy for boxes of both splits without a size or more than a pixel outside their image: raise an error, clip, or
    drop. Detectors with masks also check the masks: clip and drop skip annotations without a readable mask."""
    check_images: Annotated[Literal["first_time", "always", "never"], Affects.NOTHING] = "first_time"
    """When to open every image file before training: at the first start of a run, always, or never. With first_time,
    later starts and evaluations check again only if the annotation file or an image folder has changed."""
    keep_images_without_boxes: Annotated[bool, Affects.RESULT, OldName("keep_empty")] = False
    """Whether to train on images without boxes too, as background. They reduce false positives on images without
    objects. Use it only if such images show none of the classes: objects that are not annotated train as background."""
    crowd_regions: Annotated[Literal["ignore", "background"], Affects.RESULT, ValueBefore("background")] = "ignore"
    """Meaning of annotations with iscrowd 1 in training: ignore (neither object nor background, as in evaluation), or
    background, as in the COCO recipes of mmdetection and detectron2."""
    repeat_threshold: Annotated[Annotated[float, Field(gt=0, le=1)] | None, Affects.RESULT] = None
    """Repeat-factor sampling for rare classes, https://arxiv.org/abs/1908.03195. A class that a smaller fraction f of
    the training images has gets the factor sqrt(repeat_threshold / f). An epoch uses an image as often as the largest
    factor of its classes. null: once. LVIS uses 0.001, data sets with few classes need values such as 0.1."""
    on_unreadable_image: Annotated[Literal["raise", "skip"], Affects.RESULT, OldName("unreadable")] = "raise"
    """Policy for images that cannot be read during a run: raise an error, or skip them and report their number."""
    channels: Annotated[int, Field(ge=1, le=1024), Affects.NETWORK] = 3
    """Number of channels of the images. 3: RGB, to which greyscale, palettes and others are converted. 1 or more: TIFF,
    NPY and other images with exactly this number of channels."""
    mean: Annotated[ChannelValues | None, Affects.NETWORK] = None
    """Mean of each channel for the normalisation, with black at 0 and white at 1. null: the detector's for 3 channels;
    measured on training images otherwise, and written into the config of the run."""
    std: Annotated[ChannelDeviations | None, Affects.NETWORK] = None
    """Standard deviation of each channel for the normalisation; null as in `mean`."""
    pixel_range: Annotated[PixelRange | ChannelRanges | None, Affects.RESULT] = None
    """Values [low, high] of black and white in images with more than 8 bits, as in [0, 4095] for 12 bits; or a list of
    such pairs, one for each channel. Values outside are clipped. null: 0 to 65535 for 16-bit images, and 0 to 1 for
    floating-point images with such values. All other images are errors without this key. 8-bit images do not use
    it."""
    augment: Annotated[AugmentConfig, Word("preset")] = AugmentConfig()
    """Random changes of training images: none, flip, light, medium, strong, aerial, or keys."""
    weak_last_epochs: Annotated[NonNegativeInt, Affects.RESULT] = 0
    """Number of epochs at the end of a run with weak augmentations only: flips and `rotate_90`."""
    resize: Annotated[Literal[KINDS] | None, Affects.RESULT] = None
    """Resizing of images: shortest (to a length of the shorter side), stretch (to a square), letterbox (into a square
    with filled margins). null: the detector's default, which is shortest for most detectors."""
    min_size: Annotated[ImageSide | Annotated[list[ImageSide], Field(min_length=1, max_length=100)], Affects.RESULT] = (
        800
    )
    """Shorter side that images are scaled to, or side of the square, in pixels. With a list (multi-scale training), one
    size is drawn for each training image, or for each step if images become squares."""
    eval_size: Annotated[ImageSide | None, Affects.RESULT] = None
    """The size in evaluation, in pixels; null: the last of `min_size`."""
    max_size: Annotated[ImageSide, Affects.RESULT, UsedIf("resize", (None, "shortest"))] = 1333
    """Maximum length of the longer side in pixels, with resize shortest."""
    num_workers: Annotated[NonNegativeInt, Field(le=256), Affects.NOTHING, Alias("workers")] = 4
    """Number of processes that load images; 0: the training process loads them."""
