from google.colab import note


def unassign() -> None:
    note("unassign")
