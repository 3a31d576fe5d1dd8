"""What is installed under the import name `netloader`. Reads metadata, imports nothing else.

Another project on the package index is called `netloader` and has the same import name. pip puts
both into one folder: the one installed later overwrites files of the same name, and uninstalling
either deletes them. The files that remain can still be imported, but belong to neither project.
"""

from importlib.metadata import PackageNotFoundError, distribution

OURS = "vllm-netloader"
THEIRS = "netloader"
REMEDY = (
    f"pip uninstall --yes {THEIRS} {OURS}, then install {OURS} alone; to use both, give each an "
    "environment of its own"
)


def mixed() -> str:
    """The problem and its remedy if the other project is in this environment; else empty.

    Before its first release this project had that name too; its plugin entry point tells the two
    apart.
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
