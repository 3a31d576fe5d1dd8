"""What is installed under the import name `netloader`. Law: reads metadata, imports nothing else.

Another project on the package index is called `netloader` and has the same import name. pip puts
both into one folder: the files of the later one replace those of the same name, and removing either
takes them away. What is left may be imported, and is neither of the two.
"""

from importlib.metadata import PackageNotFoundError, distribution

OURS = "vllm-netloader"
THEIRS = "netloader"
REMEDY = (
    f"pip uninstall --yes {THEIRS} {OURS}, then install {OURS} alone; to use both, give each an "
    "environment of its own"
)


def mixed() -> str:
    """What is wrong when the other project is in this environment, and the remedy; else empty.

    This one was called so as well before its first release, and is told by its plugin.
    """
    try:
        other = distribution(THEIRS)
    except PackageNotFoundError:
        return ""
    if any(point.value.startswith("netloader.vllm_plugin") for point in other.entry_points):
        what = f"this project is installed under its old name, {THEIRS} {other.version}"
    else:
        what = f"another project, {THEIRS} {other.version}, has the same import name"
    return f"{what}, and its files lie among those of {OURS}: {REMEDY}"
