from google.colab import here, note


def mount(mountpoint: str) -> None:
    (here(mountpoint) / "MyDrive").mkdir(parents=True, exist_ok=True)
    note(f"mount {mountpoint}")


def flush_and_unmount() -> None:
    note("flush and unmount")
