"""The options of a run: every key with its type, range, default and meaning. `config_file.py` reads them from YAML."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Level = Annotated[int, Field(ge=2, le=5)]
PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
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


class LargeScaleJitterConfig(Section):
    """Large-scale jitter, https://arxiv.org/abs/2012.07177."""

    size: PositiveInt = 1024
    """Side of the square that training images are cut or padded to, in pixels."""
    scale: Annotated[list[PositiveFloat], Field(min_length=2, max_length=2)] = [0.1, 2.0]
    """Bounds of the random scale; at 1 the image just fits into the square."""


class DataConfig(Section):
    """Data set and how pictures reach the model."""

    train: SplitConfig
    """The split to learn from."""
    val: SplitConfig
    """The split to judge by."""
    source: str | None = None
    """How to get the data set; shown when it is missing."""
    invalid_boxes: Literal["raise", "clip", "drop"] = "raise"
    """What to do with training boxes that have no size or leave their image by more than a pixel. With a detector of
    masks also with annotations of both splits whose mask is missing or cannot be read: clip and drop leave them out."""
    keep_empty: bool = False
    """Whether to train on images without any box too."""
    unreadable: Literal["raise", "skip"] = "raise"
    """What to do when an image cannot be read during a run: stop, or leave it out; what was left out is counted and
    reported."""
    flip: Fraction = 0.5
    """Probability of a horizontal flip in training."""
    color_jitter: Fraction = 0.0
    """In training, brightness, contrast and saturation vary by up to this share, and the hue by a quarter of it."""
    large_scale_jitter: LargeScaleJitterConfig | None = None
    """Training images are scaled by this, in place of `min_size` and `max_size`; null: not."""
    min_size: PositiveInt | Annotated[list[PositiveInt], Field(min_length=1)] = 800
    """Shorter side that images are scaled to, in pixels; of a list, one is drawn for each training image (multi-scale
    training), and evaluation uses the last."""
    max_size: PositiveInt = 1333
    """Bound on the longer side, in pixels."""
    workers: Annotated[int, Field(ge=0)] = 4
    """Processes that load pictures; 0 loads in the training process."""


class BackboneConfig(Section):
    """ResNet and where it is deformable."""

    name: str = "resnet50"
    """A torchvision ResNet: resnet18/34/50/101/152, resnext..., wide_resnet...; with _vd its ResNet-D (deep stem,
    average-pooled shortcuts), as in resnet50_vd."""
    dcn_v2_stages: list[int] = []
    """Stages whose 3x3 convolutions are deformable, counted as torchvision's layers: [2, 3, 4] = layer2..4 = C3..C5."""
    dcn_every: PositiveInt = 1
    """Which blocks of a deformable stage are: every so many, counted back from the last, which always is."""
    modulation: bool = True
    """True: DCNv2, samples are weighted by a learned mask. False: DCNv1."""
    offset_groups: PositiveInt = 1
    """Channel groups with offsets of their own."""
    mask_scale: PositiveFloat = 2.0
    """mask = mask_scale * sigmoid; 2 starts as the plain network, 1 is the paper's text and others' checkpoints."""
    stride_in_1x1: bool = False
    """Bottlenecks have their stride in the first 1x1 convolution, not in the 3x3: for weights of Caffe and MSRA."""
    frozen_stages: Annotated[int, Field(ge=-1, le=4)] = -1
    """-1 trains all, 0 freezes the stem, s freezes the stem and stages 1..s."""
    norm: str = "frozen_bn"
    """frozen_bn (with pretrained weights), bn (each process by itself), sync_bn (bn over all processes, on GPUs), or
    gn (group norm of 32, for a start from scratch)."""
    recompute_dcn_stages: bool = False
    """Activation checkpointing: compute the deformable stages again in the backward pass, to save their memory."""
    weights: str | None = None
    """torchvision's name (IMAGENET1K_V1, DEFAULT), a local state-dict file (./x.pth), or null for a random start."""


class FpnConfig(Section):
    """Feature pyramid."""

    levels: list[Level] = [2, 3, 4, 5]
    """Levels taken from the backbone, P2..P5."""
    channels: PositiveInt = 256
    """Width of the pyramid."""
    extra_levels: str = "pool"
    """What comes on top of them: pool (the last one, halved once more), p6p7 (two convolutions of stride 2, the first
    from P5), or p6p7_c5 (the first from C5)."""


class TwoStageConfig(Section):
    """What all detectors with proposals have; the defaults are the common COCO recipe."""

    anchor_sizes: list[PositiveInt] = [32, 64, 128, 256, 512]
    """One anchor size in pixels for each pyramid map, those on top included."""
    aspect_ratios: Annotated[list[PositiveFloat], Field(min_length=1)] = [0.5, 1.0, 2.0]
    """Height over width of the anchors."""
    roi_canonical_size: PositiveInt = 224
    """Side in pixels of the boxes pooled from P4; half the side is pooled one level lower. Small images want less."""
    roi_aligned: bool = False
    """Whether features of boxes are pooled as in mmdetection, detectron2 and PaddleDetection: shifted by half a pixel,
    and with more points in larger boxes. Needed for weights from there; false is torchvision's way."""
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


class FasterRcnnConfig(TwoStageConfig):
    """Faster R-CNN."""


class MaskRcnnConfig(TwoStageConfig):
    """Mask R-CNN: Faster R-CNN and a mask of each object."""

    mask_head_channels: PositiveInt = 256
    """Width of the mask head's convolutions."""


class CascadeRcnnConfig(TwoStageConfig):
    """Cascade R-CNN: three box heads in a row."""

    stage_loss_weights: Annotated[list[PositiveFloat], Field(min_length=3, max_length=3)] = [1.0, 0.5, 0.25]
    """Weight of each stage's losses; detectron2 has [1, 1, 1]."""


class CascadeMaskRcnnConfig(CascadeRcnnConfig, MaskRcnnConfig):
    """Cascade R-CNN and a mask of each object."""


class RetinaNetConfig(Section):
    """Heads of RetinaNet; the defaults are the common COCO recipe, on levels 3 to 7."""

    anchor_sizes: list[PositiveInt] = [32, 64, 128, 256, 512]
    """One anchor size in pixels for each pyramid map, those on top included."""
    scales_per_octave: PositiveInt = 3
    """n: the anchors of a map are its size times 2**(0/n), 2**(1/n), ..., in whole pixels."""
    aspect_ratios: Annotated[list[PositiveFloat], Field(min_length=1)] = [0.5, 1.0, 2.0]
    """Height over width of the anchors."""
    positive_iou: Fraction = 0.5
    """IoU with a box from which an anchor learns to detect it; the best anchors of a box always do."""
    negative_iou: Fraction = 0.4
    """IoU below which an anchor learns to detect nothing; those in between are ignored."""
    score_threshold: Fraction = 0.05
    """Detections below are dropped."""
    nms_threshold: Fraction = 0.5
    """IoU above which the weaker of two detections of a class is dropped."""
    topk_candidates: PositiveInt = 1000
    """The most detections of a pyramid map, before NMS."""
    detections_per_image: PositiveInt = 100
    """The most detections of an image."""


class FcosConfig(Section):
    """Heads of FCOS; the defaults are the common COCO recipe, on levels 3 to 7."""

    dcn_convs: Annotated[int, Field(ge=0, le=4)] = 0
    """How many of the four convolutions of each tower of the head are deformable, counted from the last; modulation,
    offset_groups and mask_scale are those of the backbone."""
    center_sampling_radius: PositiveFloat = 1.5
    """Places that learn to detect a box lie so many strides from its centre at most."""
    score_threshold: Fraction = 0.2
    """Detections below are dropped. The score is the root of class score times centre-ness, and so higher than that of
    other detectors: 0.2 drops products below 0.04."""
    nms_threshold: Fraction = 0.6
    """IoU above which the weaker of two detections of a class is dropped; other detectors have 0.5."""
    topk_candidates: PositiveInt = 1000
    """The most detections of a pyramid map, before NMS."""
    detections_per_image: PositiveInt = 100
    """The most detections of an image."""


class ModelConfig(Section):
    """Detector."""

    detector: str = "faster_rcnn"
    """Which one; its options stand in the section of its name, and those of the other sections change nothing."""
    weights: str | None = None
    """Whole detector to start from: a checkpoint (runs/r50/best.pt), or what tools/convert.py --config made. Classes
    are taken over by name, and `backbone.weights` is not read. null: only the backbone has weights to start from."""
    dcn_backend: str = "auto"
    """How deformable convolutions are computed: a name in dcn.BACKENDS, or auto."""
    backbone: BackboneConfig = BackboneConfig()
    """ResNet."""
    fpn: FpnConfig = FpnConfig()
    """Pyramid."""
    faster_rcnn: FasterRcnnConfig = FasterRcnnConfig()
    """Heads."""
    mask_rcnn: MaskRcnnConfig = MaskRcnnConfig()
    """Heads."""
    cascade_rcnn: CascadeRcnnConfig = CascadeRcnnConfig()
    """Heads."""
    cascade_mask_rcnn: CascadeMaskRcnnConfig = CascadeMaskRcnnConfig()
    """Heads."""
    retinanet: RetinaNetConfig = RetinaNetConfig()
    """Heads."""
    fcos: FcosConfig = FcosConfig()
    """Heads."""


class TrainConfig(Section):
    """Optimisation and what is written when."""

    epochs: PositiveInt = 12
    """Passes over the training images."""
    max_steps: PositiveInt | None = None
    """Stop after so many steps, whatever `epochs` says."""
    early_stop: PositiveInt | None = None
    """Stop after so many evaluations without a better AP; null: never."""

    batch_size: PositiveInt = 16
    """Images in one forward pass of one process. A step has batch_size x accumulate x processes."""
    accumulate: PositiveInt = 1
    """Forward and backward passes of each process in a step: for large steps in little memory."""
    reference_batch: PositiveInt | None = 16
    """Images in a step that `lr` is meant for; it is scaled by the images in a step over this. null: no scaling."""

    optimizer: str = "sgd"
    """sgd or adamw."""
    lr: PositiveFloat = 0.02
    """Learning rate."""
    backbone_lr_factor: NonNegativeFloat = 1.0
    """Learning rate of the ResNet over `lr`; that of its offset layers is `offset_lr_factor`."""
    offset_lr_factor: NonNegativeFloat = 0.1
    """Learning rate of the layers that predict offsets and masks, over `lr`."""
    lr_factors: dict[str, NonNegativeFloat] = {}
    """Learning rate over `lr` of parameters by name, in place of the two factors above: a regular expression, searched
    for in the names, and its factor; the first that is found decides. Those of the detector come after. One that
    matches nothing is refused."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of SGD; the first beta of AdamW."""
    weight_decay: NonNegativeFloat = 1e-4
    """Of all parameters but those that the next two keys take out."""
    norm_weight_decay: NonNegativeFloat | None = None
    """Of weights and biases of norms; null: as the rest."""
    bias_weight_decay: NonNegativeFloat | None = None
    """Of all other biases; null: as the rest."""
    weight_decay_factors: dict[str, NonNegativeFloat] = {}
    """Weight decay over `weight_decay` of parameters by name, as `lr_factors`; in place of the two keys above."""
    clip_norm: PositiveFloat | None = 35.0
    """Bound on the norm of the whole gradient; null: none."""

    schedule: str = "step"
    """step (falls by `gamma` at `milestones`) or cosine (falls to `min_lr_factor` at the end of the run)."""
    schedule_unit: Literal["epoch", "step"] = "epoch"
    """What `milestones` count; and whether the cosine falls once an epoch or with every step."""
    warmup_steps: Annotated[int, Field(ge=0)] = 500
    """Steps over which the learning rate rises linearly."""
    warmup_factor: Annotated[float, Field(gt=0, le=1)] = 0.001
    """Where it starts, over the full one."""
    milestones: list[PositiveFloat] = [8.0, 11.0]
    """Of schedule step: when the learning rate is multiplied by `gamma`, counted in `schedule_unit`."""
    gamma: PositiveFloat = 0.1
    """See `milestones`."""
    min_lr_factor: Fraction = 0.0
    """Of schedule cosine: the last learning rate over the full one."""

    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Keep an exponential moving average of the weights with this decay, as in 0.9998; it is judged and saved beside
    the raw weights, and its AP is the run's. null: none."""

    amp: Literal["off", "bf16", "fp16"] = "off"
    """Mixed precision: autocast to this type; fp16 with loss scaling."""
    tf32: bool = True
    """Whether NVIDIA GPUs may multiply float32 numbers in TF32, several times faster at 10 bits of mantissa."""
    channels_last: bool = False
    """Keep images and weights as (batch, height, width, channels) in memory: faster on GPUs with amp."""
    compile: bool = False
    """torch.compile of backbone and pyramid; costs minutes at the start."""

    log_every: PositiveInt = 50
    """Steps between two records in metrics.jsonl and TensorBoard; each is the mean since the last."""
    checkpoint_every: PositiveInt = 1000
    """Steps between two writings of last.pt; it is written after every epoch too."""
    keep_last: PositiveInt = 2
    """How many of the newest checkpoints are kept: last.pt and those before it. best.pt stays beside them."""
    eval_every: PositiveInt = 1
    """Epochs between two evaluations; the last epoch is always followed by one."""
    picture_every: PositiveInt = 1000
    """Steps between two sets of pictures of validation images in TensorBoard, and with DCN between two histograms of
    offsets and masks; the end adds one."""


class TestConfig(Section):
    """How tools/eval.py and tools/predict.py look at an image; evaluation during training looks once."""

    flip: bool = False
    """Whether to look at the mirror image too, and merge what is found in both; costs twice the time."""


class RunConfig(Section):
    """A whole run."""

    data: DataConfig
    """Data set and how pictures reach the model."""
    model: ModelConfig = ModelConfig()
    """Detector."""
    train: TrainConfig = TrainConfig()
    """Optimisation and what is written when."""
    test: TestConfig = TestConfig()
    """How tools/eval.py and tools/predict.py look at an image."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Of everything random; below 2**32."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1, mps."""
