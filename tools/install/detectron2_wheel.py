"""
Detectron2 from the package index.

No index has Detectron2 under its own name. ``sal-detectron2`` is a republished main branch of it
(compared with the original file by file). Since the publisher is not Detectron2's, the file is
pinned by its hash, and nothing of it is unpacked before the hash is right.

The wheel is marked as one for CPython 3.10, so that pip refuses it elsewhere, and brings two things
that must not be installed. One is a top-level package ``tools``, which would hide everybody else's.
The other is the compiled ``_C``, built for CPython 3.10 and a torch of 2024: with today's torch it
does not load even there, and Detectron2 does without (COCO evaluation by pycocotools; no deformable
convolutions, no rotated boxes). Hence the wheel is unpacked here, not by pip.

``pip check`` will say that sal-detectron2 wants numpy<2 and is for another platform. Neither holds
for what is installed here.
"""

import base64
import csv
import hashlib
import io
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from checks import InstallError

__all__ = ["NAME", "SHA256", "VERSION", "install", "unpack", "verify"]

NAME = "sal-detectron2"
VERSION = "0.7.2"
SHA256 = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"

TAGS = "--python-version 3.10 --implementation cp --abi none --platform any"


def install(pip: Callable[..., None], site_packages: Path, scratch: Path) -> None:
    """
    Download, verify and unpack.

    Args:
        pip: runs pip with the arguments that it is given.
        site_packages: folder that the package goes into.
        scratch: folder for the download.
    """
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        what = f"{NAME}=={VERSION}"
        pip("download", "--no-deps", "--only-binary=:all:", *TAGS.split(), "--dest", folder, what)
        (wheel,) = Path(folder).glob("*.whl")
        verify(wheel)
        unpack(wheel, site_packages)


def verify(wheel: Path, expected: str = SHA256) -> None:
    """Refuse a file whose SHA-256 is not the one that was reviewed."""
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != expected:
        raise InstallError(
            f"{wheel.name} is not the file that was reviewed (SHA-256 {found}, not {expected}): "
            "nothing of it was installed"
        )


def unpack(wheel: Path, site_packages: Path) -> None:
    """
    Put ``detectron2`` and the metadata of the wheel into ``site_packages``, replacing what an
    interrupted run may have left, so that ``pip uninstall`` knows all files and no others.
    """
    metadata = f"{NAME.replace('-', '_')}-{VERSION}.dist-info"
    with (
        tempfile.TemporaryDirectory(dir=site_packages, prefix=".odam-") as folder,
        zipfile.ZipFile(wheel) as archive,
    ):
        members = [name for name in archive.namelist() if _is_wanted(name)]
        archive.extractall(folder, members)
        record = Path(folder, metadata, "RECORD")
        Path(folder, metadata, "INSTALLER").write_text("odam_d2\n")
        record.write_text(_edit_record(record, Path(folder, metadata, "INSTALLER")))
        for name in ("detectron2", metadata):  # the metadata last: it says that all is there
            shutil.rmtree(site_packages / name, ignore_errors=True)
            Path(folder, name).rename(site_packages / name)


def _is_wanted(name: str) -> bool:
    return not name.startswith("tools/") and not name.startswith("detectron2/_C.")


def _edit_record(record: Path, installer: Path) -> str:
    """The wheel's list of files without those left out, and with the one that was added."""
    content = installer.read_bytes()
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    with record.open(newline="") as lines:
        rows = [row for row in csv.reader(lines) if row and _is_wanted(row[0])]
    rows.append([f"{record.parent.name}/INSTALLER", f"sha256={digest}", str(len(content))])
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
