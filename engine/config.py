"""The options of a run: every key with its type, range, default and meaning. `config_file.py` reads them from YAML."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Level = Annotated[int, Field(ge=2, le=5)]
PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """Strict: no unknown keys, no conversions, no changes afterwards."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class SplitConfig(Section):
    """Where one split of a COCO-format data set lies."""

    images: str
    """Folder of the pictures; a relative path is relative to where the command runs."""
    annotations: str
    """COCO instances JSON file."""


class DataConfig(Section):
    """Data set and how pictures reach the model."""

    train: SplitConfig
    """The split to learn from."""
    val: SplitConfig
    """The split to judge by."""
    source: str | None = None
    """How to get the data set; shown when it is missing."""
    invalid_boxes: Literal["raise", "clip", "drop"] = "raise"
    """What to do with training boxes that have no size or leave their image by more than a pixel."""
    keep_empty: bool = False
    """Whether to train on images without any box too."""
    flip: Fraction = 0.5
    """Probability of a horizontal flip in training."""
    min_size: PositiveInt | Annotated[list[PositiveInt], Field(min_length=1)] = 800
    """Shorter side that images are scaled to, in pixels; of a list, one is drawn for each training image, and
    evaluation uses the last."""
    max_size: PositiveInt = 1333
    """Bound on the longer side, in pixels."""
    workers: Annotated[int, Field(ge=0)] = 4
    """Processes that load pictures; 0 loads in the training process."""


class BackboneConfig(Section):
    """ResNet and where it is deformable."""

    name: str = "resnet50"
    """A torchvision ResNet: resnet18/34/50/101/152, resnext..., wide_resnet..."""
    dcn_v2_stages: list[int] = []
    """Stages whose 3x3 convolutions are deformable, counted as torchvision's layers: [2, 3, 4] = layer2..4 = C3..C5."""
    modulation: bool = True
    """True: DCNv2, samples are weighted by a learned mask. False: DCNv1."""
    offset_groups: PositiveInt = 1
    """Channel groups with offsets of their own."""
    mask_scale: PositiveFloat = 2.0
    """mask = mask_scale * sigmoid; 2 starts as the plain network, 1 is the paper's text and others' checkpoints."""
    frozen_stages: Annotated[int, Field(ge=-1, le=4)] = -1
    """-1 trains all, 0 freezes the stem, s freezes the stem and stages 1..s."""
    norm: str = "frozen_bn"
    """frozen_bn (with pretrained weights), bn, or gn (group norm of 32, for a start from scratch)."""
    weights: str | None = None
    """torchvision's name (IMAGENET1K_V1, DEFAULT), a local state-dict file (./x.pth), or null for a random start."""


class FpnConfig(Section):
    """Feature pyramid."""

    levels: list[Level] = [2, 3, 4, 5]
    """Levels taken from the backbone, P2..P5; a pooled one comes on top."""
    channels: PositiveInt = 256
    """Width of the pyramid."""


class FasterRcnnConfig(Section):
    """Heads of Faster R-CNN; the defaults are the common COCO recipe."""

    anchor_sizes: list[PositiveInt] = [32, 64, 128, 256, 512]
    """One anchor size in pixels for each pyramid map, the pooled one included."""
    aspect_ratios: Annotated[list[PositiveFloat], Field(min_length=1)] = [0.5, 1.0, 2.0]
    """Height over width of the anchors."""
    roi_canonical_size: PositiveInt = 224
    """Side in pixels of the boxes pooled from P4; half the side is pooled one level lower. Small images want less."""
    box_head_channels: PositiveInt = 1024
    """Width of the box head's two fully connected layers."""
    rpn_proposals_train: PositiveInt = 2000
    """Proposals kept in training, per level before NMS and per image after it."""
    rpn_proposals_test: PositiveInt = 1000
    """The same in evaluation."""
    rpn_batch_size: PositiveInt = 256
    """Anchors per image that the RPN learns from."""
    box_batch_size: PositiveInt = 512
    """Proposals per image that the box head learns from."""
    score_threshold: Fraction = 0.05
    """Detections below are dropped."""
    nms_threshold: Fraction = 0.5
    """IoU above which the weaker of two detections of a class is dropped."""
    detections_per_image: PositiveInt = 100
    """The most detections of an image."""


class ModelConfig(Section):
    """Detector."""

    detector: str = "faster_rcnn"
    """A name in models.DETECTORS."""
    dcn_backend: str = "auto"
    """How deformable convolutions are computed: a name in dcn.BACKENDS, or auto."""
    backbone: BackboneConfig = BackboneConfig()
    """ResNet."""
    fpn: FpnConfig = FpnConfig()
    """Pyramid."""
    faster_rcnn: FasterRcnnConfig = FasterRcnnConfig()
    """Heads."""


class TrainConfig(Section):
    """Optimisation and what is written when."""

    epochs: PositiveInt = 12
    """Passes over the training images."""
    max_steps: PositiveInt | None = None
    """Stop after so many steps, whatever `epochs` says."""
    batch_size: PositiveInt = 16
    """Images in a step."""
    reference_batch: PositiveInt | None = 16
    """Images in a step that `lr` is meant for; it is scaled by batch_size / reference_batch. null: no scaling."""
    optimizer: str = "sgd"
    """sgd or adamw."""
    lr: PositiveFloat = 0.02
    """Learning rate."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of SGD; the first beta of AdamW."""
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-4
    """Of all parameters."""
    offset_lr_factor: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    """Learning rate of the layers that predict offsets and masks, over that of the rest."""
    warmup_steps: Annotated[int, Field(ge=0)] = 500
    """Steps over which the learning rate rises linearly."""
    warmup_factor: Annotated[float, Field(gt=0, le=1)] = 0.001
    """Where it starts, over the full one."""
    milestones: list[PositiveFloat] = [8.0, 11.0]
    """Epochs after which the learning rate is multiplied by `gamma`."""
    gamma: PositiveFloat = 0.1
    """See `milestones`."""
    clip_norm: PositiveFloat | None = 35.0
    """Bound on the norm of the whole gradient; null: none."""
    amp: Literal["off", "bf16", "fp16"] = "off"
    """Mixed precision: autocast to this type; fp16 with loss scaling."""
    log_every: PositiveInt = 50
    """Steps between two records in metrics.jsonl and TensorBoard; each is the mean since the last."""
    checkpoint_every: PositiveInt = 1000
    """Steps between two writings of last.pt; it is written after every epoch too."""
    eval_every: PositiveInt = 1
    """Epochs between two evaluations; the last epoch is always followed by one."""
    picture_every: PositiveInt = 1000
    """Steps between two pictures of validation images with truth and detections in TensorBoard; the end adds one."""


class RunConfig(Section):
    """A whole run."""

    data: DataConfig
    """Data set and how pictures reach the model."""
    model: ModelConfig = ModelConfig()
    """Detector."""
    train: TrainConfig = TrainConfig()
    """Optimisation and what is written when."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of everything random."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1, mps."""
