"""Exit status 0 if this Python can run the project: version, and the packages of the requirement files given."""

import importlib.metadata
import importlib.util
import re
import sys

MODULES = {  # distribution -> module, where they differ
    "open-clip-torch": "open_clip",
    "scikit-learn": "sklearn",
    "opencv-python-headless": "cv2",
    "pillow": "PIL",
    "faster-coco-eval": "faster_coco_eval",
    "pyyaml": "yaml",
    "pytest-xdist": "xdist",
    "pytest-timeout": "pytest_timeout",
    "import-linter": "importlinter",
}


def numbers(version):
    return [int(part) for part in re.findall(r"\d+", version)[:3]]


def missing(path):
    """Requirements of one file that this environment does not meet."""
    found = []
    with open(path, encoding="utf-8") as file:
        for line in file:
            match = re.match(r"\s*([A-Za-z0-9_.-]+)\s*(?:>=\s*([\d.]+))?", line.split("#")[0])
            if not match:
                continue
            name, wanted = match.groups()
            module = MODULES.get(re.sub(r"[-_.]+", "-", name).lower(), name.replace("-", "_").lower())
            if importlib.util.find_spec(module) is None:
                found.append(name)
                continue
            try:
                version = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue  # installed under another distribution name: the module is there
            if wanted and numbers(version) < numbers(wanted):
                found.append(f"{name}>={wanted} (found {version})")
    return found


if __name__ == "__main__":
    if sys.version_info < (3, 10):  # noqa: UP036 - an older Python is what this line is for
        sys.exit("Python 3.10 or newer is needed")
    lacking = [name for path in sys.argv[1:] for name in missing(path)]
    if lacking:
        sys.exit("missing: " + ", ".join(lacking))
