"""Zip files: what is taken from them, what is refused, and that a half is never left."""

import json
import stat
import zipfile

import pytest

from data.archives import (
    COCO_IMAGES,
    Archive,
    DownloadError,
    bytes_missing,
    coco_annotations,
    is_there,
    missing_pictures,
    peak_bytes,
    unpack,
)

PICTURES = {f"val2017/{index}.jpg": bytes([index]) * (index + 5) for index in range(3)}
IMAGES = Archive("zips/val2017.zip", size=0, sha256="", folder="val2017", files=3, unpacked=18)
INSTANCES = coco_annotations(["val"])


@pytest.fixture
def zipped(tmp_path):
    """`zipped(files)` writes a zip file beside `root`."""

    def write(files, compression=zipfile.ZIP_STORED):
        with zipfile.ZipFile(tmp_path / "some.zip", "w", compression) as file:
            for name, content in files:
                file.writestr(name, content)
        return tmp_path / "some.zip"

    return write


@pytest.fixture
def root(tmp_path):
    """The folder to unpack into."""
    (tmp_path / "coco").mkdir()
    return tmp_path / "coco"


def track(items, label):
    return items


def inside(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_folder_is_unpacked(zipped, root, compression):
    place = zipped([("val2017/", b""), *PICTURES.items(), ("other/readme", b"not wanted")], compression)
    labels = []
    unpack(IMAGES, place, root, lambda items, label: labels.append((label, len(items))) or items)
    assert inside(root) == PICTURES
    assert labels == [("unpack val2017.zip", 3)]
    assert is_there(IMAGES, root)
    assert [path.name for path in root.iterdir()] == ["val2017"]


def test_single_files_go_into_a_folder_that_holds_others(zipped, root):
    (root / "annotations").mkdir()
    (root / "annotations/mine.json").write_text("mine")
    name = "annotations/instances_val2017.json"
    assert not is_there(INSTANCES, root)
    unpack(INSTANCES, zipped([(name, b"{}"), ("annotations/captions_val2017.json", b"no")]), root, track)
    assert inside(root) == {name: b"{}", "annotations/mine.json": b"mine"}
    assert is_there(INSTANCES, root)
    assert not is_there(coco_annotations(["train", "val"]), root)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("../evil.txt", "'../evil.txt' leads out"),
        ("val2017/../../evil.txt", "leads out"),
        ("/tmp/evil.txt", "leads out"),
        ("C:/evil.txt", "leads out"),
        ("val2017\\..\\evil.txt", "leads out"),
        ("val2017/0.jpg", "'val2017/0.jpg' stands twice"),
        ("val2017/9.jpg", "holds 4 of the 3 files that are expected in val2017/"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_what_no_archive_of_coco_holds_is_refused(zipped, root, name, said):
    place = zipped([*PICTURES.items(), (name, b"evil")])
    with pytest.raises(DownloadError) as caught:
        unpack(IMAGES, place, root, track)
    assert said in str(caught.value)
    assert "nothing was unpacked" in str(caught.value)
    assert not [*root.iterdir()]
    assert sorted(path.name for path in root.parent.iterdir()) == ["coco", "some.zip"]


def test_a_link_is_refused(zipped, root):
    link = zipfile.ZipInfo("val2017/2.jpg")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    place = zipped([*list(PICTURES.items())[:2], (link, b"/etc/passwd")])
    with pytest.raises(DownloadError, match=r"'val2017/2\.jpg' leads out"):
        unpack(IMAGES, place, root, track)
    assert not [*root.iterdir()]


def test_too_few_files(zipped, root):
    with pytest.raises(DownloadError, match="holds 2 of the 3 files"):
        unpack(IMAGES, zipped(list(PICTURES.items())[:2]), root, track)
    with pytest.raises(DownloadError, match="holds 0 of the 1 files"):
        unpack(INSTANCES, zipped([("annotations/captions_val2017.json", b"")]), root, track)
    assert not [*root.iterdir()]


def test_a_damaged_member_is_named_and_nothing_is_left(zipped, root):
    place = zipped(PICTURES.items())
    content = bytearray(place.read_bytes())
    content[content.index(PICTURES["val2017/2.jpg"])] ^= 1
    place.write_bytes(content)
    with pytest.raises(DownloadError, match=r"some\.zip cannot be unpacked: Bad CRC-32 for file 'val2017/2\.jpg'"):
        unpack(IMAGES, place, root, track)
    assert not [*root.iterdir()]
    place.write_bytes(content[:-30])
    with pytest.raises(DownloadError, match="File is not a zip file"):
        unpack(IMAGES, place, root, track)


def test_a_run_that_is_killed_leaves_nothing_that_looks_whole(zipped, root, monkeypatch):
    place = zipped(PICTURES.items())

    def killed(items, label):
        yield from items[:2]
        monkeypatch.setattr("data.archives.shutil.rmtree", lambda *_args, **_keywords: None)  # no time to clean up
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unpack(IMAGES, place, root, killed)
    monkeypatch.undo()
    assert len(inside(root)) == 2
    assert not is_there(IMAGES, root)
    assert not (root / "val2017").exists()
    unpack(IMAGES, place, root, track)
    assert inside(root) == PICTURES


def test_a_full_disk(zipped, mounted):
    disk = mounted("size=64k")
    pictures = {name: content * 10_000 for name, content in PICTURES.items()}
    with pytest.raises(OSError, match="No space left"):
        unpack(IMAGES, zipped(pictures.items()), disk, track)
    assert not [*disk.iterdir()]


def test_a_folder_with_something_else_is_left_alone(root):
    assert not is_there(IMAGES, root)
    (root / "val2017").mkdir()
    assert not is_there(IMAGES, root)
    (root / "val2017/mine.jpg").write_text("mine")
    with pytest.raises(DownloadError, match=r"val2017 holds 1 files where val2017\.zip has 3; move it away"):
        is_there(IMAGES, root)


def test_how_much_is_missing_and_how_much_room_it_takes(root):
    """By hand: the second archive is fetched while the first is unpacked and gone, or kept."""
    one = Archive("zips/a.zip", size=100, sha256="", folder="a", files=1, unpacked=70)
    two = Archive("zips/b.zip", size=40, sha256="", folder="b", files=1, unpacked=50)
    assert peak_bytes([one, two], root, keep_archives=False) == 100 + 70
    assert peak_bytes([two, one], root, keep_archives=False) == 50 + 100 + 70
    assert peak_bytes([one, two], root, keep_archives=True) == 100 + 70 + 40 + 50
    (root / "a.zip.part").write_bytes(bytes(30))
    assert bytes_missing(one, root) == 70
    assert peak_bytes([one], root, keep_archives=False) == 70 + 70
    (root / "a.zip").write_bytes(bytes(100))
    assert bytes_missing(one, root) == 0
    (root / "b.zip.part").write_bytes(bytes(300))
    assert bytes_missing(two, root) == 0


def test_pictures_that_are_listed_and_not_there(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"images": [{"file_name": name} for name in "abc"]}))
    (tmp_path / "pictures").mkdir()
    for name in "acd":
        (tmp_path / "pictures" / name).touch()
    assert missing_pictures(tmp_path / "a.json", tmp_path / "pictures") == (3, ["b"])


def test_the_table_is_cocos():
    """Sizes and counts that COCO's own page and papers give: 118k and 5k images, 18 GB, 1 GB and 241 MB."""
    assert [COCO_IMAGES[split].files for split in ("train", "val")] == [118_287, 5_000]
    sizes = [COCO_IMAGES["train"].size, COCO_IMAGES["val"].size, INSTANCES.size]
    assert [round(size / 2**30, 1) for size in sizes[:2]] == [18.0, 0.8]
    assert round(sizes[2] / 2**20) == 241
    archives = [*COCO_IMAGES.values(), INSTANCES]
    assert {archive.path for archive in archives} == {
        "zips/train2017.zip",
        "zips/val2017.zip",
        "annotations/annotations_trainval2017.zip",
    }
    assert all(len(bytes.fromhex(archive.sha256)) == 32 for archive in archives)
    assert len({archive.sha256 for archive in archives}) == 3
