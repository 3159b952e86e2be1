"""Find objects in pictures and videos with a trained detector: draw them, and write them as COCO JSON."""

import argparse
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import _clone

# isort: split
from _predict_files import (
    SOFTWARE,
    Findings,
    check_json,
    in_words,
    plan_files,
    read_ahead,
    write_picture,
)
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from data import CocoAnnotations, ImageError, declared_size, load_annotations, read_image
from data.files import write_json
from data.media_files import MediaFile, find_media_files
from data.video import VideoError, load_av, open_video, video_writer
from engine.config import describe_unused, unused_overrides
from engine.display import Progress, counted, draw_detections, format_table, log, start_logging
from engine.evaluation import coco_dataset, match_files
from engine.inference import predictor_of
from engine.weights import Trained, check_categories, load_trained
from models.checkpoint import choose_weights
from models.predictor import Predictor

EPILOG = """examples:
  python tools/predict.py runs/r50_dcn street.jpg                            # into runs/r50_dcn/predictions
  python tools/predict.py runs/r50_dcn photos --out found --score 0.7        # a folder and all within it
  python tools/predict.py runs/r50_dcn "photos/**/a*.jpg" device=cpu
  python tools/predict.py runs/r50_dcn/best.pt clip.mp4 --batch 8 --every 5  # every 5th frame
  python tools/predict.py runs/r50_dcn photos --json found.json --no-pictures
  python tools/predict.py runs/r50_dcn val2017 --no-pictures --score 0 \\
      --annotations instances_val2017.json --json results.json               # for tools/eval.py --results
Pictures and videos keep their size and, below --out, their place in the folder that all inputs have in common. Earlier
results are written over, other files and inputs never. A picture or video that cannot be read is named and left out,
and the exit code is then 1; 2 is a mistake in what was asked for.
--json gives a COCO file with images, categories and annotations, each with a score; with --annotations it is a plain
list of COCO results, with the ids of that file."""
# Frames of a video between two lines where there is no bar.
LINE_EVERY = 100


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of a run, whose last.pt is used, or a .pt file")
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help='a picture, a video, a folder, or a pattern in quotes such as "photos/*.jpg"; key=value are config '
        "values, as in device=cpu or tta.flip=true",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: <run>/predictions)")
    parser.add_argument(
        "--score", type=float, default=0.5, help="what scores less is left out (default: %(default)s; 0: nothing is)"
    )
    parser.add_argument(
        "--batch",
        type=int,
        default=1,
        metavar="N",
        help="images that are looked at together (default: %(default)s): more are faster on a GPU and need more memory",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what is found as COCO JSON")
    parser.add_argument(
        "--annotations", type=Path, metavar="FILE", help="COCO file that knows the pictures: --json takes its ids"
    )
    parser.add_argument("--no-pictures", action="store_true", help="draw nothing")
    parser.add_argument(
        "--weights", choices=("raw", "ema"), help="of a run with train.ema_decay (default: ema where there are any)"
    )
    parser.add_argument(
        "--every", type=int, default=1, metavar="N", help="look at and write every Nth frame of a video only"
    )
    args = parser.parse_intermixed_args()
    args.overrides = [text for text in args.inputs if "=" in text and not Path(text).exists()]
    args.inputs = [text for text in args.inputs if text not in args.overrides]
    args.out = args.out or (args.run if args.run.is_dir() else args.run.parent) / "predictions"
    if not args.inputs:
        parser.error("give at least one INPUT")
    for option in ("batch", "every"):
        if getattr(args, option) < 1:
            parser.error(f"--{option} must be at least 1, got {getattr(args, option)}")
    if args.annotations and not args.json:
        parser.error("--annotations is about --json")
    return args


def main() -> None:
    """Look, draw and write."""
    args = parse_arguments()
    start_logging()
    sources = find_media_files(args.inputs, exclude=args.out)
    videos = [source for source in sources if source.is_video]
    check_videos(videos, args)
    trained = load_trained(args.run, args.overrides)
    if unused := unused_overrides(trained.config, args.overrides):
        log.warning("%s", describe_unused(unused))
    known = read_annotations(args.annotations, sources, trained) if args.annotations else None
    if args.json:
        check_json(args.json)
    files = {} if args.no_pictures else plan_files(sources, args.out)
    predictor = predictor_of(trained, score_threshold=args.score, weights=args.weights)
    findings = Findings(predictor.class_names, trained.state["category_ids"])
    began = time.perf_counter()
    pictures = [source for source in sources if not source.is_video]
    look_at_pictures(predictor, pictures, files, findings, known, args, most_narrow=trained.config.data.max_size)
    for source in videos:
        look_at_video(predictor, source, files.get(source), findings, args)
    seconds = time.perf_counter() - began
    if args.json:
        write_json(args.json, findings.results if known else as_dataset(findings))
    print(describe(trained, predictor, args, findings, seconds))
    if findings.unreadable:
        raise SystemExit(1)


def check_videos(videos: Sequence[MediaFile], args: argparse.Namespace) -> None:
    """Raise `ValueError` for what does not go with videos, or without any."""
    if videos:
        load_av()
    if videos and args.annotations:
        raise ValueError(f"--annotations knows pictures only, and {videos[0].path} is a video")
    if args.every > 1 and not videos:
        raise ValueError("--every is about videos, and no input is one")


def read_annotations(file: Path, sources: Sequence[MediaFile], trained: Trained) -> dict[Path, dict[str, Any]]:
    """Find the entry of an annotation file for each picture, and check that its categories are those of the run."""
    split: CocoAnnotations = load_annotations(file.parent, file, invalid_boxes="clip", check_images="never")
    check_categories(trained.state, split.class_names, split.category_ids, trained.path, file)
    files = [source.path for source in sources]
    return dict(zip(files, match_files(files, split.raw["images"], file), strict=True))


def look_at_pictures(
    predictor: Predictor,
    pictures: Sequence[MediaFile],
    files: dict[MediaFile, Path],
    findings: Findings,
    known: dict[Path, dict[str, Any]] | None,
    args: argparse.Namespace,
    *,
    most_narrow: int,
) -> None:
    """Find objects in pictures, draw them into files, and note them."""

    def read(source: MediaFile) -> tuple[MediaFile, Tensor | ImageError]:
        try:
            image = read_image(source.path, declared_size(known[source.path]) if known else None)
            if max(image.size) > most_narrow * min(image.size):
                raise ImageError(f"image {source.path} is too narrow, nothing is left of it at data.max_size")
            return source, pil_to_tensor(image)
        except ImageError as error:
            return source, error

    def readable() -> Iterator[tuple[MediaFile, Tensor]]:
        stream = read_ahead(read, pictures)
        for source, image in Progress().track(stream, "predict", len(pictures), unit=" images"):
            if isinstance(image, ImageError):
                findings.leave_out(source.path, image)
            else:
                yield source, image

    for batch in in_batches(readable(), args.batch):
        found = predictor([image for _, image in batch], batch_size=args.batch)
        for (source, image), detections in zip(batch, found, strict=True):
            findings.add(detections, image, known[source.path] if known else {"file_name": source.name})
            if source in files:
                write_picture(files[source], draw(image, detections, predictor, args))
            line = (len(findings.images) + len(findings.unreadable), len(pictures), source.name, in_words(detections))
            log.info("%d/%d %s: %s", *line, extra={"on_bar": True})


def look_at_video(
    predictor: Predictor, source: MediaFile, file: Path | None, findings: Findings, args: argparse.Namespace
) -> None:
    """Find objects in the frames of a video, draw them into another, and note them."""

    def readable(frames: Iterable[Tensor]) -> Iterator[tuple[int, Tensor]]:
        try:
            yield from ((index, frame) for index, frame in enumerate(frames) if index % args.every == 0)
        except VideoError as error:
            findings.leave_out(source.path, error)  # what came before stays

    try:
        with open_video(source.path) as video:
            drawn = video_writer(file, video.rate / args.every, SOFTWARE) if file else nullcontext()
            frames = Progress().track(video.images, source.name, video.frames, unit=" frames")
            with drawn as write:
                for batch in in_batches(readable(frames), args.batch):
                    found = predictor([image for _, image in batch], batch_size=args.batch)
                    for (index, image), detections in zip(batch, found, strict=True):
                        about = {"file_name": f"{source.name}/frame_{index:06d}.png", "frame": index}
                        findings.add(detections, image, about)
                        if file:
                            write(draw(image, detections, predictor, args))
                        if index % (LINE_EVERY * args.every) == 0:
                            line = (source.name, index, video.frames or "?", in_words(detections))
                            log.info("%s, frame %d/%s: %s", *line, extra={"on_bar": True})
    except VideoError as error:
        findings.leave_out(source.path, error)


def in_batches(items: Iterable, size: int) -> Iterator[list]:
    """Yield lists of `size` items, the last of fewer."""
    items = iter(items)
    while batch := [*islice(items, size)]:
        yield batch


def draw(image: Tensor, detections: dict[str, Any], predictor: Predictor, args: argparse.Namespace) -> Tensor:
    """Draw detections into their image at its size."""
    return draw_detections(image, detections, predictor.class_names, score_threshold=args.score, short_side=None)


def as_dataset(findings: Findings) -> dict[str, Any]:
    """All that was found, as a COCO file by itself."""
    names = zip(findings.category_ids, findings.class_names, strict=True)
    categories = [{"id": key, "name": name} for key, name in names]
    return coco_dataset(findings.images, findings.results, categories, description=SOFTWARE)


def describe(
    trained: Trained, predictor: Predictor, args: argparse.Namespace, findings: Findings, seconds: float
) -> str:
    """Say what was found, how fast, and where it is."""
    kind = "averaged weights" if choose_weights(trained.state, args.weights, trained.path) == "ema" else "weights"
    flip = ", mirror images too" if trained.config.tta.flip else ""
    detector = trained.config.model.detector
    own = trained.config.model.options.score_threshold
    least = f"{args.score:g}" if args.score >= own else f"{own:g} (model.{detector}.score_threshold)"
    lines = [f"{trained.path} ({kind} of step {trained.state['step']}), {predictor.device}, scores from {least}{flip}"]
    rows = findings.rows()
    if rows:
        lines += ["", format_table(("class", "objects", "images with it", "best score"), rows), ""]
    count = len(findings.images)
    lines.append(
        f"{counted(len(findings.results), 'object')} in {counted(count, 'image')}, {count / seconds:.1f} images/s "
        f"with reading{'' if args.no_pictures else ', drawing'} and writing"
    )
    if count and not args.no_pictures:
        lines.append(f"pictures: {args.out}")
    if args.json:
        lines.append(f"COCO JSON: {args.json} ({counted(len(findings.results), 'detection')})")
    if findings.unreadable:
        lines.append(f"not or not wholly read: {', '.join(map(str, findings.unreadable))}")
    return "\n".join(lines)


if __name__ == "__main__":
    _clone.run(main)
