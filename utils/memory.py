"""How much memory is left: of the machine, and of the container that the process runs in."""

from __future__ import annotations

from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def available_memory() -> int | None:
    """Bytes that new allocations can take without swapping; None where the system does not tell (not Linux)."""
    machine = _fields(_MEMINFO).get("MemAvailable:")
    if machine is None:
        return None
    container = _container_rest()
    return machine * 1024 if container is None else min(machine * 1024, container)


def format_bytes(count: float) -> str:
    """In the largest fitting unit: "812 MiB", "3.4 GiB"."""
    mib = count / 2**20
    return f"{mib / 1024:.1f} GiB" if mib >= 1024 else f"{mib:.0f} MiB"


def _container_rest() -> int | None:
    """What a control group's limit leaves, files that can be read again counted as free; None without a limit."""
    try:
        limit, used = ((_CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return None
    if limit == "max":
        return None
    return int(limit) - int(used) + _fields(_CGROUP / "memory.stat").get("inactive_file", 0)


def _fields(path: Path) -> dict[str, int]:
    """Lines "name number ..." of a file of the kernel; nothing if there is no such file."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    return {words[0]: int(words[1]) for words in map(str.split, lines) if len(words) > 1 and words[1].isdecimal()}
