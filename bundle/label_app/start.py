"""Start the annotation server: ``python label_app/start.py --studies FOLDER [--port 8000]``.

All other arguments go to MONAI Label unchanged, such as ``--conf partial_labels true``.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

APP = Path(__file__).resolve().parent


def main() -> None:
    """Replace this process by the server."""
    parser = argparse.ArgumentParser(description="Serve the scans of a folder for annotation with 3D Slicer or OHIF.")
    parser.add_argument("--studies", required=True, help="folder with .nii.gz or .nii files, or a DICOMweb address")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 lets other machines in")
    parser.add_argument("--port", default="8000", help="port to listen on")
    options, others = parser.parse_known_args()
    studies = options.studies
    if not studies.startswith(("http://", "https://")):
        if not Path(studies).is_dir():
            sys.exit(f"studies {studies} is not a folder: expected a folder with .nii.gz or .nii files.")
        studies = str(Path(studies).resolve())
    paths = [str(APP / "site"), str(APP.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(APP), "--studies", studies]
    command += ["--host", options.host, "--port", options.port, *others]
    # By default MONAI Label takes pictures and text files in the folder for scans, too.
    extensions = {"MONAI_LABEL_DATASTORE_FILE_EXT": '["*.nii.gz", "*.nii"]'}
    os.execve(sys.executable, command, {**extensions, **os.environ, "PYTHONPATH": os.pathsep.join(paths)})


if __name__ == "__main__":
    main()
