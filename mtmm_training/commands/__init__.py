"""The command line `mtmm`."""


def installed_version() -> str:
    """The version that is installed; a checkout on the path that nobody installed has none."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("mtmm")
    except PackageNotFoundError:
        return "not installed"
