from google.colab import note


def authenticate_user() -> None:
    note("authenticate")
